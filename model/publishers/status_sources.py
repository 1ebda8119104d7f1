"""The status of the nodes of several masters: their status files, and the status pages that serve them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from ..common.errors import system_words
from ..common.targets import is_url, without_password
from ..common.threads import map_until
from .status_file import PublishedNode, StatusFileError, decode, read_status

#: Of a status page.
_TIMEOUT_S = 5.0
#: Of all of them together.
_ALL_S = 8.0
_AT_ONCE = 16
_MOST_BYTES = 2**28


class StatusSources:
    """Where statuses are read.

    Parameters
    ----------
    sources : sequence of str
        Paths of status files, and URLs of status pages, with or without ``/status.json``.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._sources = tuple(dict.fromkeys(sources))

    def __len__(self) -> int:
        return len(self._sources)

    def read(self) -> tuple[Mapping[str, PublishedNode], list[str]]:
        """The nodes of all sources, and a line for each that cannot be read, in their order.

        A node that two masters have published is that of the later slice.
        """
        end_s = time.monotonic() + _ALL_S
        found = dict(map_until(self._sources, _read, _AT_ONCE, lambda: max(0.0, end_s - time.monotonic()), "status"))
        nodes: dict[str, PublishedNode] = {}
        problems: list[str] = []
        for source in self._sources:
            published = found.get(source, f"{without_password(source)}: no answer within {_ALL_S:g} s")
            if isinstance(published, str):
                problems.append(published)
                continue
            for name, node in published.items():
                if name not in nodes or (node.slice_end or 0.0) > (nodes[name].slice_end or 0.0):
                    nodes[name] = node
        return nodes, problems


def _read(source: str) -> Mapping[str, PublishedNode] | str:
    try:
        return _fetch(source) if is_url(source) else read_status(Path(source))
    except StatusFileError as error:
        return str(error)


def _fetch(url: str) -> Mapping[str, PublishedNode]:
    import requests

    parts = urlsplit(url)
    path = parts.path if parts.path.endswith(".json") else f"{parts.path.rstrip('/')}/status.json"
    address, name = urlunsplit((parts.scheme, parts.netloc, path, "", "")), without_password(url)
    try:
        with requests.get(address, timeout=_TIMEOUT_S, stream=True) as response:
            if response.status_code != 200:
                raise StatusFileError(f"{name}: HTTP status {response.status_code}")
            body = bytearray()
            for piece in response.iter_content(2**16):
                body += piece
                if len(body) > _MOST_BYTES:
                    raise StatusFileError(f"{name}: more than {_MOST_BYTES} bytes")
    except requests.Timeout:
        raise StatusFileError(f"{name}: no answer within {_TIMEOUT_S:g} s") from None
    except (requests.RequestException, OSError) as error:
        words = next((message for _, message in system_words(error)), f"no answer ({type(error).__name__})")
        raise StatusFileError(f"{name}: {words}") from None
    return decode(bytes(body), name)
