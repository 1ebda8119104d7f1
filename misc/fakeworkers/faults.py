"""The faults: what a request gets instead of its page."""

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

# Faults: what a request gets instead of its page, or what happens to a worker.


@dataclass(slots=True)
class Fault:
    """A fault in the way of a worker's pages, until a time, for so many more requests, or until it is taken away."""

    name: str
    delay_s: float
    until_s: float | None
    left: int | None
    held: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A request in trouble."""

    request: web.Request
    fault: Fault
    page: bytes
    random: np.random.Generator


def page_response(body: bytes) -> web.Response:
    """The page as an HTTP response."""
    return web.Response(body=body, headers=_EXPOSITION)


async def _slow(asked: PageRequest) -> web.StreamResponse:
    await asyncio.sleep(asked.fault.delay_s)
    return page_response(asked.page)


async def _hang(_: PageRequest) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")


async def _error(_: PageRequest) -> web.StreamResponse:
    return web.Response(status=500, text="An error has occurred while serving metrics:\n\nas asked for\n")


async def _empty(_: PageRequest) -> web.StreamResponse:
    return page_response(b"")


async def _partial(asked: PageRequest) -> web.StreamResponse:
    lines = asked.page.splitlines(keepends=True)
    return page_response(b"".join(lines[: asked.random.integers(1, len(lines))]))


async def _cut(asked: PageRequest) -> web.StreamResponse:
    lines = asked.page.splitlines(keepends=True)
    kept = asked.random.integers(1, len(lines))
    return page_response(b"".join(lines[:kept]) + lines[kept][: asked.random.integers(1, len(lines[kept]) - 1)])


async def _truncated_body(asked: PageRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers=_EXPOSITION)
    response.content_length = len(asked.page)
    response.force_close()
    await response.prepare(asked.request)
    await response.write(asked.page[: len(asked.page) // 2])
    await response.write_eof()
    return response


async def _stale(asked: PageRequest) -> web.StreamResponse:
    return page_response(asked.fault.held[asked.request.match_info["endpoint"]])


async def _endless(asked: PageRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers=_EXPOSITION)
    response.force_close()
    await response.prepare(asked.request)
    piece = asked.page or b"\n"
    with contextlib.suppress(ConnectionResetError):
        while True:
            await response.write(piece)
            # Quick enough to fill any buffer, slow enough to leave the CPU to who is tested.
            await asyncio.sleep(0.005)
    return response


async def _redirect(asked: PageRequest) -> web.StreamResponse:
    hop = int(asked.request.query.get("hop", "0")) + 1
    return web.Response(status=302, headers={"Location": f"{asked.request.path}?hop={hop}"})


async def _gzip_bomb(_: PageRequest) -> web.StreamResponse:
    body = await asyncio.get_running_loop().run_in_executor(None, zeros_compressed)
    return web.Response(body=body, headers={**_EXPOSITION, "Content-Encoding": "gzip"})


@cache
def zeros_compressed() -> bytes:
    """The page of a ``gzip-bomb``; packing it the first time takes a second or more."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(_BOMB_MB)) + packer.flush()


async def _long_line(asked: PageRequest) -> web.StreamResponse:
    first, newline, rest = asked.page.partition(b"\n")
    return page_response(first + newline + b"x" * (_LONG_LINE_BYTES - 2) + b" 1\n" + rest)


async def _html(_: PageRequest) -> web.StreamResponse:
    page = "<!DOCTYPE html>\n<html><head><title>Log in</title></head>\n<body><p>Please log in.</p></body></html>\n"
    return web.Response(text=page, content_type="text/html")


async def _garbage(asked: PageRequest) -> web.StreamResponse:
    return page_response(asked.random.bytes(65536))


#: What a request gets instead of its page. A new one is a function and a line here.
ANSWERS: dict[str, tuple[str, Callable[[PageRequest], Awaitable[web.StreamResponse]]]] = {
    "slow": ("the page comes late: after delay_s, else --slow-s", _slow),
    "hang": ("no answer, ever", _hang),
    "500": ("an HTTP error", _error),
    "empty": ("200 without a body", _empty),
    "partial": ("the page ends after some line", _partial),
    "cut": ("the page ends within a line", _cut),
    "truncated-body": ("half of what Content-Length says, then the connection closes", _truncated_body),
    "stale": ("the page of the moment when the fault began", _stale),
    "endless": ("the page over and over, without end", _endless),
    "redirect": ("a redirect to a redirect to ...", _redirect),
    "gzip-bomb": (f"{_BOMB_MB} MB of zero bytes, compressed to less than a thousandth", _gzip_bomb),
    "long-line": (f"a line of {_LONG_LINE_BYTES} bytes as the second one of the page", _long_line),
    "html": ("200 with an HTML page", _html),
    "garbage": ("200 with random bytes", _garbage),
}

#: What happens to a worker, once.
EVENTS = {
    "reset": "the worker boots: all of its counters start again",
    "vm-restart": "the counters of a VM start again",
    "vm-leaves": "a VM is shut off",
    "vm-returns": "a VM that was shut off is started",
}

#: What ends the fault of a worker.
NO_FAULT = "none"
