"""Asks a worker node for its pages: in time, within bounds, or not at all."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import aiohttp

from ..common.errors import system_words
from ..common.targets import LabelStub, Stub, VmprobeStub
from ..samples import Scrape
from .exposition import PageError
from .libvirt_exporter import LabelPages
from .vmprobe import VmprobePages

#: Nothing is asked to be packed: a page is small, and a bomb is not unpacked.
_HEADERS = {"Accept": "text/plain; version=0.0.4", "Accept-Encoding": "identity", "User-Agent": "scroogevm"}
_PIECE = 2**16
_LARGE = 2**20


class ScrapeError(Exception):
    """A scrape that brought nothing.

    Attributes
    ----------
    reason : str
        One of few words, fit for the label of a metric.
    """

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


@dataclass(slots=True)
class Scraper:
    """Scrapes one node.

    Parameters
    ----------
    stub : Stub
    session : aiohttp.ClientSession
    timeout_s : float
        For the scrape as a whole, from the look-up of the name to the last byte.
    max_page_bytes : int
    """

    stub: Stub
    session: aiohttp.ClientSession
    timeout_s: float
    max_page_bytes: int
    _vmprobe: VmprobePages = field(init=False)
    _labels: LabelPages = field(init=False)

    def __post_init__(self) -> None:
        self._vmprobe = VmprobePages(self.stub.prefix if isinstance(self.stub, VmprobeStub) else "")
        self._labels = LabelPages()

    @property
    def bad_lines(self) -> int:
        """Lines that could not be read so far."""
        return self._vmprobe.bad_lines + self._labels.bad_lines

    async def scrape(self) -> Scrape:
        """What the node tells now.

        Raises
        ------
        ScrapeError
        """
        try:
            if isinstance(self.stub, VmprobeStub):
                page = await self._page(self.stub.url)
                if len(page) > _LARGE:
                    # So that the others' turn comes while this one is read.
                    return await asyncio.to_thread(self._vmprobe.read, page)
                return self._vmprobe.read(page)
            return await self._scrape_labels(self.stub)
        except PageError as error:
            raise ScrapeError("page", str(error)) from None

    async def _scrape_labels(self, stub: LabelStub) -> Scrape:
        asked_ms = time.time() * 1000.0
        node, domains = await asyncio.gather(
            self._page(stub.node_exporter), self._page(stub.libvirt_exporter), return_exceptions=True
        )
        if isinstance(node, BaseException):
            raise node
        if isinstance(domains, BaseException) and not isinstance(domains, ScrapeError):
            raise domains
        # When the exporter of VMs is silent, the node's own figures are good all the same.
        known = None if isinstance(domains, ScrapeError) else domains
        return self._labels.read(node, known, float(round(asked_ms)))

    async def _page(self, url: str) -> bytes:
        try:
            # The session's time is that of the whole request, from the look-up of the name to the last byte.
            return await self._body(url)
        except asyncio.TimeoutError:
            raise ScrapeError("timeout", f"no complete page within {self.timeout_s:g} s") from None
        except aiohttp.ClientError as error:
            raise ScrapeError("connection", _words(error)) from None
        except (ValueError, OSError) as error:
            raise ScrapeError("connection", _words(error)) from None

    async def _body(self, url: str) -> bytes:
        async with self.session.get(url, headers=_HEADERS, allow_redirects=False) as response:
            if response.status != 200:
                raise ScrapeError("status", f"HTTP status {response.status}")
            packed = response.headers.get("Content-Encoding", "identity")
            if packed != "identity":
                raise ScrapeError("page", f"the page is packed ({packed[:20]!r}), though nobody asked for that")
            pieces, size = [], 0
            async for piece in response.content.iter_chunked(_PIECE):
                size += len(piece)
                if size > self.max_page_bytes:
                    raise ScrapeError("size", f"the page is larger than {self.max_page_bytes} bytes")
                pieces.append(piece)
            return b"".join(pieces)


def _words(error: BaseException) -> str:
    """What a person needs of an error; not its URL, which may hold a password."""
    for _errno, words in system_words(error):
        if not words.startswith("Connect call"):
            return words
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or "no connection"
    return type(error).__name__


def open_session(timeout_s: float) -> aiohttp.ClientSession:
    """A session for all scrapers: as many connections as there are nodes, nothing unpacked, no cookies kept."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=0, ttl_dns_cache=60),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )
