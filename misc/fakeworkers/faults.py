"""The faults: responses that replace a page, and events of a worker."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from aiohttp import web

_EXPOSITION = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}

_BOMB_MB = 256

_LONG_LINE_BYTES = 10_000_000


@dataclass(slots=True)
class Fault:
    """A fault that replaces the pages of a worker.

    Attributes
    ----------
    name : str
        Key of ``ANSWERS``.
    delay_s : float
        Of the fault ``slow``.
    until_s : float or None
        When it ends, Unix seconds.
    left : int or None
        For how many more requests it lasts.
    held : dict of str to bytes
        Pages of the fault ``stale`` by endpoint.
    """

    name: str
    delay_s: float
    until_s: float | None
    left: int | None
    held: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request that gets a fault; ``page`` is the regular page, ``random`` depends on worker and time."""

    http: web.Request
    fault: Fault
    page: bytes
    random: np.random.Generator


def page_response(body: bytes) -> web.Response:
    """Build the HTTP response with a page."""
    return web.Response(body=body, headers=_EXPOSITION)


async def _slow(request: PageRequest) -> web.StreamResponse:
    await asyncio.sleep(request.fault.delay_s)
    return page_response(request.page)


async def _hang(_: PageRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("the event is never set")


async def _error(_: PageRequest) -> web.StreamResponse:
    return web.Response(status=500, text="An error has occurred while serving metrics:\n\ninjected fault\n")


async def _empty(_: PageRequest) -> web.StreamResponse:
    return page_response(b"")


async def _partial(request: PageRequest) -> web.StreamResponse:
    lines = request.page.splitlines(keepends=True)
    return page_response(b"".join(lines[: request.random.integers(1, len(lines))]))


async def _cut(request: PageRequest) -> web.StreamResponse:
    lines = request.page.splitlines(keepends=True)
    kept = request.random.integers(1, len(lines))
    return page_response(b"".join(lines[:kept]) + lines[kept][: request.random.integers(1, len(lines[kept]) - 1)])


async def _truncated_body(request: PageRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers=_EXPOSITION)
    response.content_length = len(request.page)
    response.force_close()
    await response.prepare(request.http)
    await response.write(request.page[: len(request.page) // 2])
    await response.write_eof()
    return response


async def _stale(request: PageRequest) -> web.StreamResponse:
    return page_response(request.fault.held[request.http.match_info["endpoint"]])


async def _endless(request: PageRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers=_EXPOSITION)
    response.force_close()
    await response.prepare(request.http)
    piece = request.page or b"\n"
    with contextlib.suppress(ConnectionResetError):
        while True:
            await response.write(piece)
            # Fast enough to fill any buffer, slow enough to leave CPU time for the program under test.
            await asyncio.sleep(0.005)
    return response


async def _redirect(request: PageRequest) -> web.StreamResponse:
    hop = int(request.http.query.get("hop", "0")) + 1
    return web.Response(status=302, headers={"Location": f"{request.http.path}?hop={hop}"})


async def _gzip_bomb(_: PageRequest) -> web.StreamResponse:
    body = await asyncio.get_running_loop().run_in_executor(None, zeros_compressed)
    return web.Response(body=body, headers={**_EXPOSITION, "Content-Encoding": "gzip"})


@cache
def zeros_compressed() -> bytes:
    """Build the body of ``gzip-bomb``; the first call takes a second or more."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(_BOMB_MB)) + packer.flush()


async def _long_line(request: PageRequest) -> web.StreamResponse:
    first, newline, rest = request.page.partition(b"\n")
    return page_response(first + newline + b"x" * (_LONG_LINE_BYTES - 2) + b" 1\n" + rest)


async def _html(_: PageRequest) -> web.StreamResponse:
    page = "<!DOCTYPE html>\n<html><head><title>Log in</title></head>\n<body><p>Please log in.</p></body></html>\n"
    return web.Response(text=page, content_type="text/html")


async def _garbage(request: PageRequest) -> web.StreamResponse:
    return page_response(request.random.bytes(65536))


#: Responses that replace the page: description and function by name.
ANSWERS: dict[str, tuple[str, Callable[[PageRequest], Awaitable[web.StreamResponse]]]] = {
    "slow": ("the page after a delay: delay_s, or --slow-s", _slow),
    "hang": ("no response", _hang),
    "500": ("an HTTP error", _error),
    "empty": ("200 without a body", _empty),
    "partial": ("the page ends after some line", _partial),
    "cut": ("the page ends within a line", _cut),
    "truncated-body": ("half of Content-Length, then the connection closes", _truncated_body),
    "stale": ("the page of the time when the fault began", _stale),
    "endless": ("the page repeated without end", _endless),
    "redirect": ("a redirect to a redirect to ...", _redirect),
    "gzip-bomb": (f"{_BOMB_MB} MB of zero bytes, compressed to less than a thousandth", _gzip_bomb),
    "long-line": (f"the page with a second line of {_LONG_LINE_BYTES} bytes", _long_line),
    "html": ("200 with an HTML page", _html),
    "garbage": ("200 with random bytes", _garbage),
}

#: Events of a worker, which happen once.
EVENTS = {
    "reset": "the worker boots: all counters start again",
    "vm-restart": "the counters of a VM start again",
    "vm-leaves": "a VM is shut off",
    "vm-returns": "a VM that was shut off is started",
}

#: Ends the fault of a worker.
NO_FAULT = "none"
