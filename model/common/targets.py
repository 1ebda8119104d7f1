"""Scrape targets: ``AGGREG_STUB_LIST`` and the names of nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from .settings import InvalidValue, Section, Setting


def is_url(text: str) -> bool:
    """Whether this is an http or https URL with a host."""
    try:
        parts = urlsplit(text)
        # The port is looked at only when it is asked for.
        return (
            parts.scheme in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and text.isprintable()
            and "," not in parts.netloc
            and " " not in text
        )
    except ValueError:
        return False


def http_url(text: str) -> str:
    """Parse the value of a setting that is an http(s) URL.

    Raises
    ------
    InvalidValue
    """
    if not is_url(text):
        raise InvalidValue("is not an http(s) URL")
    return text


def node_name(text: str) -> str:
    """The name of a node: its URL as written, without a password."""
    return without_password(text) if is_url(text) else text


def without_password(url: str) -> str:
    """The URL without user and password, fit to be shown and stored."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


@dataclass(frozen=True, slots=True)
class VmprobeStub:
    """A worker node that runs vmprobe.

    Attributes
    ----------
    node : str
        Its name: the URL without a password.
    url : str
    prefix : str
        Prefix of vmprobe's metrics on the page.
    """

    node: str
    url: str = field(repr=False)
    prefix: str


@dataclass(frozen=True, slots=True)
class LabelStub:
    """A worker node that runs node_exporter and a libvirt exporter."""

    node: str
    node_exporter: str = field(repr=False)
    libvirt_exporter: str = field(repr=False)


Stub = VmprobeStub | LabelStub


def parse_stubs(value: Any) -> tuple[Stub, ...]:
    """Check the decoded value of ``AGGREG_STUB_LIST``.

    Raises
    ------
    ValueError
        Names the entry.
    """
    if not isinstance(value, list):
        raise ValueError("is not a list")
    stubs = tuple(_parse_stub(entry, f"entry {i + 1}") for i, entry in enumerate(value))
    seen: set[str] = set()
    for i, stub in enumerate(stubs):
        if stub.node in seen:
            raise ValueError(f"entry {i + 1}: node {stub.node} is listed twice")
        seen.add(stub.node)
    return stubs


def _parse_stub(entry: Any, place: str) -> Stub:
    if isinstance(entry, list):
        if len(entry) != 2 or not all(isinstance(part, str) and part for part in entry):
            raise ValueError(f'{place}: is not ["http://worker:9100/metrics", "prefix"]')
        url, prefix = entry
        if not is_url(url):
            raise ValueError(f"{place}: is not an http(s) URL")
        if not all(c.isascii() and (c.isalnum() or c in "_:") for c in prefix) or prefix[0].isdigit():
            raise ValueError(f"{place}: {prefix!r} cannot be the prefix of a metric")
        if not prefix.strip("_:"):
            raise ValueError(f"{place}: {prefix!r} cannot be the prefix of a metric")
        return VmprobeStub(without_password(url), url, prefix.rstrip("_"))
    keys = {"node", "node_exporter", "libvirt_exporter"}
    if isinstance(entry, dict) and set(entry) == keys and all(isinstance(entry[key], str) for key in keys):
        for key in ("node_exporter", "libvirt_exporter"):
            if not is_url(entry[key]):
                raise ValueError(f"{place}: {key} is not an http(s) URL")
        if not entry["node"] or not entry["node"].isprintable():
            raise ValueError(f"{place}: node is not a name")
        return LabelStub(
            node_name(entry["node"]),
            entry["node_exporter"],
            entry["libvirt_exporter"],
        )
    raise ValueError(f"{place}: is neither [URL, prefix] nor an object with {', '.join(sorted(keys))}")


_AGGREGATOR = Section("Aggregator (vmaggreg.py)")
STUB_LIST: Setting[tuple[Stub, ...]] = _AGGREGATOR.json(
    "AGGREG_STUB_LIST",
    (),
    parse_stubs,
    """The worker nodes, a JSON list. An entry is either
["http://worker1:9100/metrics", "vmprobe"], a page with vmprobe's metrics and their prefix, or
{"node": "http://worker2", "node_exporter": "http://worker2:9100/metrics", "libvirt_exporter":
"http://worker2:9177/metrics"}, a name and the pages of node_exporter and of a libvirt exporter.""",
    example='[["http://worker1:9100/metrics", "vmprobe"]]',
)
FETCH_DELAY = _AGGREGATOR.number(
    "AGGREG_FETCH_DELAY",
    0.0,
    0,
    86400,
    "Seconds between two scrapes of a node, at least 0.1. 0 takes the delay that each probe reports.",
)
METRICS_ADDRESS = Section("All daemons").text(
    "METRICS_ADDRESS", "127.0.0.1", "Address on which the daemons serve their own metrics and pages."
)
