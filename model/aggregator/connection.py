"""HTTP connections that end when a peer sends more than a page.

The HTTP client has no limit on what comes before a page and between its parts: interim responses, headers, chunk
extensions, trailers. It parses all of that in the event loop, which serves all nodes.
"""

from __future__ import annotations

import asyncio
import functools
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

#: Longest head of a response, interim responses included, bytes.
_LONGEST_HEAD = 2**16

#: Packets of a response that are too small to be worth the time that each takes: so many, and one for so many bytes.
_SMALL_PACKETS = 2000
_BYTES_PER_PACKET = 64

#: Longest time to parse a response, seconds; a page of 8 MB takes 0.02 s.
_LONGEST_PARSING_S = 0.25


class FloodError(aiohttp.ClientError):
    """A peer sent more than a scrape may take; the message is one line."""


@dataclass(slots=True)
class Received:
    """What a response has cost so far.

    Attributes
    ----------
    data_bytes, packets : int
    cpu_s : float
    """

    data_bytes: int = 0
    packets: int = 0
    cpu_s: float = 0.0


class BoundedHandler(ResponseHandler):
    """Counts what a peer sends in each response, and closes the connection above the limits.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    most_bytes : int
        Longest response, with its head and what is between its parts.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most_bytes: int) -> None:
        super().__init__(loop=loop)
        self.received = Received()
        self._most_bytes = most_bytes
        self._has_head = False
        self._refused = False

    def set_response_params(self, **params: Any) -> None:
        """Prepare for the next response."""
        self.received = Received()
        self._has_head = False
        super().set_response_params(**params)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take the head of a response."""
        if data[0].code >= 200:
            self._has_head = True
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Count and parse a packet."""
        if self._refused:
            return
        received = self.received
        start_s = time.thread_time()
        super().data_received(data)
        received.cpu_s += time.thread_time() - start_s
        received.data_bytes += len(data)
        received.packets += 1
        excess = self._excess()
        if excess:
            self._refuse(FloodError(excess))

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Set what the reader of the response gets; the reason of a refusal stays."""
        if not self._refused:
            super().set_exception(exc, *cause)

    def _excess(self) -> str | None:
        received = self.received
        if not self._has_head and received.data_bytes > _LONGEST_HEAD:
            return f"the head of the response is longer than {_LONGEST_HEAD} bytes"
        if received.data_bytes > self._most_bytes:
            return f"the response is longer than {self._most_bytes} bytes"
        if received.packets > _SMALL_PACKETS + received.data_bytes // _BYTES_PER_PACKET:
            return "the response comes in too many small packets"
        if received.cpu_s > _LONGEST_PARSING_S:
            return f"the response takes more than {_LONGEST_PARSING_S:g} s to parse"
        return None

    def _refuse(self, error: FloodError) -> None:
        payload, transport = self._payload, self.transport
        if payload is not None:
            payload.set_exception(error)
        self.set_exception(error)
        self._refused = True
        # The end of the connection would replace the reason.
        self._payload = self._parser = None
        if transport is not None:
            transport.abort()


def open_connector(max_page_bytes: int) -> aiohttp.TCPConnector:
    """A connector without a limit of connections, whose connections are bounded.

    Parameters
    ----------
    max_page_bytes : int
        Largest page; a response may have an eighth more, and its head.
    """
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=0, ttl_dns_cache=60)
    most_bytes = max_page_bytes + max_page_bytes // 8 + _LONGEST_HEAD
    # aiohttp has no parameter for it; the tests of floods fail if this has no effect.
    connector._factory = functools.partial(  # type: ignore[assignment]
        BoundedHandler, loop=asyncio.get_running_loop(), most_bytes=most_bytes
    )
    return connector
