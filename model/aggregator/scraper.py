"""Requests the pages of a worker node, with limits on time and size, and reads them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import aiohttp

from ..common.errors import system_words
from ..common.targets import Stub, VmprobeStub
from ..samples import Scrape
from .connection import BoundedHandler, FloodError, open_connector
from .exposition import PageError
from .libvirt_exporter import LabelReader
from .limits import PageLimits
from .vmprobe import VmprobeReader

#: No compression: pages are small, and a decompression bomb is not decompressed.
_HEADERS = {"Accept": "text/plain; version=0.0.4", "Accept-Encoding": "identity", "User-Agent": "scroogevm"}
#: Bytes read from a connection at once.
_PIECE = 2**16
#: A peer that sent more than this without a complete page floods, bytes.
_FLOOD = 2**20


class ScrapeError(Exception):
    """A scrape that failed.

    Attributes
    ----------
    reason : str
        One of a few words, a label of a metric.
    flooded : bool
        Whether the node sent more than a scrape may take; it is scraped less often then.
    """

    def __init__(self, reason: str, message: str, *, flooded: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.flooded = flooded


class Page(NamedTuple):
    """A page, not parsed.

    Attributes
    ----------
    body : bytes
    received_ms : float
        The middle of request and answer, Unix milliseconds.
    """

    body: bytes
    received_ms: float


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of one scrape.

    Attributes
    ----------
    node : Page
        The page of vmprobe or of node_exporter.
    libvirt : Page or ScrapeError or None
        The page of the libvirt exporter, or why there is none; None when the node has no such exporter.
    """

    node: Page
    libvirt: Page | ScrapeError | None = None

    @property
    def size(self) -> int:
        """Bytes of all pages."""
        return len(self.node.body) + (len(self.libvirt.body) if isinstance(self.libvirt, Page) else 0)

    @property
    def flooded(self) -> bool:
        """Whether the libvirt exporter sent more than a scrape may take."""
        return isinstance(self.libvirt, ScrapeError) and self.libvirt.flooded


@dataclass(slots=True)
class Scraper:
    """Scrapes one node.

    The pages are requested in an event loop and read in any thread, one scrape at a time.

    Parameters
    ----------
    stub : Stub
    session : aiohttp.ClientSession
    timeout_s : float
        Limit of a whole scrape, from the name lookup to the last byte.
    max_page_bytes : int
    wall_clock : callable
        Unix seconds.
    limits : PageLimits

    Attributes
    ----------
    received_s : float
        CPU time to receive pages so far.
    """

    stub: Stub
    session: aiohttp.ClientSession
    timeout_s: float
    max_page_bytes: int
    wall_clock: Callable[[], float] = time.time
    limits: PageLimits = field(default_factory=PageLimits)
    received_s: float = field(init=False, default=0.0)
    _vmprobe: VmprobeReader = field(init=False)
    _labels: LabelReader = field(init=False)

    def __post_init__(self) -> None:
        self._vmprobe = VmprobeReader(self.stub.prefix if isinstance(self.stub, VmprobeStub) else "", self.limits)
        self._labels = LabelReader(self.limits)

    @property
    def bad_lines(self) -> int:
        """Lines that could not be parsed so far."""
        return self._vmprobe.bad_lines + self._labels.bad_lines

    async def scrape(self) -> Scrape:
        """Request and read the pages of the node.

        Raises
        ------
        ScrapeError
        """
        return self.read(await self.request())

    async def request(self) -> Pages:
        """Request the pages of the node.

        Raises
        ------
        ScrapeError
        """
        if isinstance(self.stub, VmprobeStub):
            return Pages(await self._fetch(self.stub.url))
        node, libvirt = await asyncio.gather(
            self._fetch(self.stub.node_exporter), self._fetch(self.stub.libvirt_exporter), return_exceptions=True
        )
        if isinstance(node, BaseException):
            raise node
        # Without the page of the libvirt exporter, the metrics of the node are still valid.
        if isinstance(libvirt, BaseException) and not isinstance(libvirt, ScrapeError):
            raise libvirt
        return Pages(node, libvirt)

    def read(self, pages: Pages) -> Scrape:
        """Parse pages; this may take as much CPU time as the node likes.

        Raises
        ------
        ScrapeError
        """
        try:
            if pages.libvirt is None:
                return self._vmprobe.read(*pages.node)
            if isinstance(pages.libvirt, ScrapeError):
                return self._labels.read(*pages.node, problem=str(pages.libvirt))
            return self._labels.read(*pages.node, *pages.libvirt)
        except PageError as error:
            raise ScrapeError(error.reason, str(error), flooded=error.reason == "limit") from None

    async def _fetch(self, url: str) -> Page:
        """The page of an exporter.

        Raises
        ------
        ScrapeError
        """
        peer = _Peer()
        requested_s = self.wall_clock()
        try:
            body = await self._read_body(url, peer)
            return Page(body, (requested_s + self.wall_clock()) * 500.0)
        except asyncio.TimeoutError:
            message = f"no complete page within {self.timeout_s:g} s"
            raise ScrapeError("timeout", message, flooded=peer.received_bytes > _FLOOD) from None
        except FloodError as error:
            raise ScrapeError("limit", str(error), flooded=True) from None
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise ScrapeError("connection", _connection_message(error)) from None
        finally:
            self.received_s += peer.cpu_s

    async def _read_body(self, url: str, peer: _Peer) -> bytes:
        async with self.session.get(url, headers=_HEADERS, allow_redirects=False) as response:
            peer.connect(response)
            if response.status != 200:
                raise ScrapeError("status", f"HTTP status {response.status}")
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise ScrapeError("page", f"the page is compressed ({encoding[:20]!r}), which was not requested")
            pieces, size = [], 0
            async for piece in response.content.iter_chunked(_PIECE):
                size += len(piece)
                if size > self.max_page_bytes:
                    raise ScrapeError("size", f"the page is larger than {self.max_page_bytes} bytes", flooded=True)
                pieces.append(piece)
            return b"".join(pieces)


class _Peer:
    """What the connection of a response has received; nothing when the response came in one piece."""

    def __init__(self) -> None:
        self._handler: BoundedHandler | None = None

    def connect(self, response: aiohttp.ClientResponse) -> None:
        """Take the connection of a response, which has none once it is complete."""
        handler = response.connection.protocol if response.connection is not None else None
        self._handler = handler if isinstance(handler, BoundedHandler) else None

    @property
    def received_bytes(self) -> int:
        return self._handler.received.data_bytes if self._handler is not None else 0

    @property
    def cpu_s(self) -> float:
        return self._handler.received.cpu_s if self._handler is not None else 0.0


def _connection_message(error: BaseException) -> str:
    """The cause of an error without its URL, which may contain a password."""
    for number, message in system_words(error):
        # asyncio puts the address into the message.
        return os.strerror(number) if number and message.startswith("Connect call") else message
    return type(error).__name__


def open_session(timeout_s: float, max_page_bytes: int) -> aiohttp.ClientSession:
    """A session for all scrapers, without a limit of connections, decompression and cookies.

    Parameters
    ----------
    timeout_s : float
        Limit of a whole request.
    max_page_bytes : int
    """
    return aiohttp.ClientSession(
        connector=open_connector(max_page_bytes),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )
