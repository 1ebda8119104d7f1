"""Requests the pages of a worker node, with limits on time and size."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

from ..common.errors import system_words
from ..common.targets import LabelStub, Stub, VmprobeStub
from ..samples import Scrape
from .exposition import PageError
from .libvirt_exporter import LabelReader
from .vmprobe import VmprobeReader

#: No compression: pages are small, and a decompression bomb is not decompressed.
_HEADERS = {"Accept": "text/plain; version=0.0.4", "Accept-Encoding": "identity", "User-Agent": "scroogevm"}
#: Bytes read from a connection at once.
_PIECE = 2**16
#: Larger pages are parsed in a thread, so that the event loop serves the other nodes meanwhile, bytes.
_LARGE_PAGE = 2**20


class ScrapeError(Exception):
    """A scrape that failed.

    Attributes
    ----------
    reason : str
        One of a few words, a label of a metric.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class Scraper:
    """Scrapes one node.

    Parameters
    ----------
    stub : Stub
    session : aiohttp.ClientSession
    timeout_s : float
        Limit of a whole scrape, from the name lookup to the last byte.
    max_page_bytes : int
    wall_clock : callable
        Unix seconds.
    """

    stub: Stub
    session: aiohttp.ClientSession
    timeout_s: float
    max_page_bytes: int
    wall_clock: Callable[[], float] = time.time
    _vmprobe: VmprobeReader = field(init=False)
    _labels: LabelReader = field(init=False)

    def __post_init__(self) -> None:
        self._vmprobe = VmprobeReader(self.stub.prefix if isinstance(self.stub, VmprobeStub) else "")
        self._labels = LabelReader()

    @property
    def bad_lines(self) -> int:
        """Lines that could not be parsed so far."""
        return self._vmprobe.bad_lines + self._labels.bad_lines

    async def scrape(self) -> Scrape:
        """Request and parse the pages of the node.

        Raises
        ------
        ScrapeError
        """
        try:
            if isinstance(self.stub, VmprobeStub):
                return await self._scrape_vmprobe(self.stub)
            return await self._scrape_labels(self.stub)
        except PageError as error:
            raise ScrapeError("page", str(error)) from None

    async def _scrape_vmprobe(self, stub: VmprobeStub) -> Scrape:
        page, received_ms = await self._fetch(stub.url)
        if len(page) > _LARGE_PAGE:
            return await asyncio.to_thread(self._vmprobe.read, page, received_ms)
        return self._vmprobe.read(page, received_ms)

    async def _scrape_labels(self, stub: LabelStub) -> Scrape:
        node, domains = await asyncio.gather(
            self._fetch(stub.node_exporter), self._fetch(stub.libvirt_exporter), return_exceptions=True
        )
        if isinstance(node, BaseException):
            raise node
        if isinstance(domains, BaseException) and not isinstance(domains, ScrapeError):
            raise domains
        # Without the page of the libvirt exporter, the metrics of the node are still valid.
        if isinstance(domains, ScrapeError):
            return self._labels.read(*node, problem=str(domains))
        return self._labels.read(*node, *domains)

    async def _fetch(self, url: str) -> tuple[bytes, float]:
        """The body of a page, and the middle of request and answer, Unix milliseconds.

        Raises
        ------
        ScrapeError
        """
        requested_s = self.wall_clock()
        try:
            body = await self._read_body(url)
            return body, (requested_s + self.wall_clock()) * 500.0
        except asyncio.TimeoutError:
            raise ScrapeError("timeout", f"no complete page within {self.timeout_s:g} s") from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise ScrapeError("connection", _connection_message(error)) from None

    async def _read_body(self, url: str) -> bytes:
        async with self.session.get(url, headers=_HEADERS, allow_redirects=False) as response:
            if response.status != 200:
                raise ScrapeError("status", f"HTTP status {response.status}")
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise ScrapeError("page", f"the page is compressed ({encoding[:20]!r}), which was not requested")
            pieces, size = [], 0
            async for piece in response.content.iter_chunked(_PIECE):
                size += len(piece)
                if size > self.max_page_bytes:
                    raise ScrapeError("size", f"the page is larger than {self.max_page_bytes} bytes")
                pieces.append(piece)
            return b"".join(pieces)


def _connection_message(error: BaseException) -> str:
    """The cause of an error without its URL, which may contain a password."""
    for number, message in system_words(error):
        # asyncio puts the address into the message.
        return os.strerror(number) if number and message.startswith("Connect call") else message
    return type(error).__name__


def open_session(timeout_s: float) -> aiohttp.ClientSession:
    """A session for all scrapers, without a limit of connections, decompression and cookies.

    Parameters
    ----------
    timeout_s : float
        Limit of a whole request.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=0, ttl_dns_cache=60),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )
