"""Faults of a hostile worker: responses that cost their reader as much as possible."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import zlib
from collections.abc import Awaitable, Callable
from functools import cache

from aiohttp import web

from misc.fakeworkers.responses import EXPOSITION, PageRequest, page_response

#: Size of the hostile pages, just below the default of AGGREG_MAX_PAGE_MB, bytes.
_PAGE_BYTES = 7_900_000

_BOMB_MB = 256

_LONG_LINE_BYTES = 10_000_000

_ESCAPED_LINES = 4900

#: Counters of perf that each machine gets with ``new-perf``.
_PERF = 40

#: Fast enough to fill any buffer, slow enough to leave CPU time for the program under test, seconds.
_PAUSE_S = 0.005

#: Begin of the names of VMs that are added to a page.
_NAME = b"x000000000"

#: Numbers that no page has had.
_numbers = itertools.count(1)


async def _endless(request: PageRequest) -> web.StreamResponse:
    response = web.StreamResponse(headers=EXPOSITION)
    response.force_close()
    await response.prepare(request.http)
    piece = request.page or b"\n"
    with contextlib.suppress(ConnectionResetError):
        while True:
            await response.write(piece)
            await asyncio.sleep(_PAUSE_S)
    return response


async def _gzip_bomb(_: PageRequest) -> web.StreamResponse:
    body = await asyncio.get_running_loop().run_in_executor(None, zeros_compressed)
    return web.Response(body=body, headers={**EXPOSITION, "Content-Encoding": "gzip"})


@cache
def zeros_compressed() -> bytes:
    """Build the body of ``gzip-bomb``; the first call takes a second or more."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    return b"".join(packer.compress(zeros) for _ in range(_BOMB_MB)) + packer.flush()


async def _long_line(request: PageRequest) -> web.StreamResponse:
    first, newline, rest = request.page.partition(b"\n")
    return page_response(first + newline + b"x" * (_LONG_LINE_BYTES - 2) + b" 1\n" + rest)


async def _large(request: PageRequest) -> web.StreamResponse:
    return page_response(request.page + _series(request.endpoint, _prefix(request.page)))


async def _escaped(request: PageRequest) -> web.StreamResponse:
    filler = '\\"' * ((_PAGE_BYTES // _ESCAPED_LINES - 100) // 2)
    line = _labelled_line(request)
    return page_response(request.page + "".join(line.format(i, filler) for i in range(_ESCAPED_LINES)).encode())


async def _new_vms(request: PageRequest) -> web.StreamResponse:
    series = _series(request.endpoint, _prefix(request.page))
    return page_response(request.page + series.replace(_NAME, b"x%09d" % next(_numbers)))


async def _renamed_vms(request: PageRequest) -> web.StreamResponse:
    """The regular page, on which each VM has a name that it had on no page before."""
    name = rb"\g<0>r%dx" % next(_numbers)
    return page_response(re.sub(rb'_domain_(?=instance)|domain="', name, request.page))


async def _new_perf(request: PageRequest) -> web.StreamResponse:
    number = next(_numbers)
    first = rb"^(\w+?_(?:domain_\w+?|global))_cpu_(?:alloc|total) .*\n"
    lines = rb"".join(rb"\1_perf_n%dx%d 1\n" % (number, i) for i in range(_PERF))
    return page_response(re.sub(first, rb"\g<0>" + lines, request.page, flags=re.MULTILINE))


async def _blanks(request: PageRequest) -> web.StreamResponse:
    return page_response(request.page + b" \n" * ((_PAGE_BYTES - len(request.page)) // 2))


async def _endless_continue(request: PageRequest) -> web.StreamResponse:
    return await _flood(request, b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 400)


async def _endless_headers(request: PageRequest) -> web.StreamResponse:
    return await _flood(request, b"HTTP/1.1 200 OK\r\n", b"X-Filler: " + b"x" * 4000 + b"\r\n")


async def _tiny_chunks(request: PageRequest) -> web.StreamResponse:
    return await _flood(request, _CHUNKED, b"1\r\n\n\r\n" * 4000)


async def _chunk_extensions(request: PageRequest) -> web.StreamResponse:
    return await _flood(request, _CHUNKED, (b"1;x=" + b"y" * 4000 + b"\r\n\n\r\n") * 4)


_CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nTransfer-Encoding: chunked\r\n\r\n"


async def _drip(request: PageRequest) -> web.StreamResponse:
    start = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: %d\r\n\r\n" % _PAGE_BYTES
    return await _flood(request, start, b"\n", pause_s=0.0)


async def _flood(request: PageRequest, start: bytes, piece: bytes, pause_s: float = _PAUSE_S) -> web.StreamResponse:
    """Write to the connection itself until the peer closes it; the server's own response is never sent."""
    transport = request.http.transport
    if transport is not None:
        transport.write(start)
    while transport is not None and not transport.is_closing():
        # Without a pause the buffer is empty again at the next turn of the loop: each piece is a packet.
        if transport.get_write_buffer_size() < 2**20:
            transport.write(piece)
        await asyncio.sleep(pause_s)
    return web.Response()


@cache
def _series(endpoint: str, prefix: str) -> bytes:
    """Lines of VMs whose names begin with ``_NAME``, or of CPUs on the page of a node."""
    line = {
        "metrics": f"{prefix}_domain_{_NAME.decode()}y{{0}}_cpu_alloc 1\n",
        "libvirt": f'libvirt_domain_info_virtual_cpus{{{{domain="{_NAME.decode()}y{{0}}"}}}} 1\n',
        "node": f'node_cpu_seconds_total{{{{cpu="{_NAME.decode()}y{{0}}",mode="user"}}}} 1\n',
    }[endpoint]
    number = (_PAGE_BYTES - 200_000) // (len(line) + 3)
    return "".join(map(line.format, range(number))).encode()


def _labelled_line(request: PageRequest) -> str:
    """A line with labels: number and filler of a label are left open."""
    if request.endpoint == "metrics":
        return f'{_prefix(request.page)}_global_x{{{{n="{{0}}",a="{{1}}"}}}} 1\n'
    if request.endpoint == "libvirt":
        return 'libvirt_domain_info_virtual_cpus{{domain="d{0}{1}"}} 1\n'
    return 'node_cpu_seconds_total{{cpu="{0}{1}",mode="user"}} 1\n'


def _prefix(page: bytes) -> str:
    match = re.search(rb"^(\w+?)_(?:global|domain)_", page, re.MULTILINE)
    return match[1].decode() if match else "vmprobe"


#: Description and function by name.
ATTACKS: dict[str, tuple[str, Callable[[PageRequest], Awaitable[web.StreamResponse]]]] = {
    "endless": ("the page repeated without end", _endless),
    "gzip-bomb": (f"{_BOMB_MB} MB of zero bytes, compressed to less than a thousandth", _gzip_bomb),
    "long-line": (f"the page with a second line of {_LONG_LINE_BYTES} bytes", _long_line),
    "large": ("the page and series of more VMs, 7.9 MB", _large),
    "escaped": (f"the page and {_ESCAPED_LINES} lines whose labels are full of escapes, 7.9 MB", _escaped),
    "new-vms": ("as large, each page with VMs of new names", _new_vms),
    "renamed-vms": ("the page, its VMs under new names each time", _renamed_vms),
    "new-perf": (f"the page, each machine with {_PERF} perf counters of new names each time", _new_perf),
    "blanks": ("the page and blank lines, 7.9 MB", _blanks),
    "continue": ("endless '100 Continue'", _endless_continue),
    "headers": ("an endless head", _endless_headers),
    "tiny-chunks": ("an endless page in chunks of a byte", _tiny_chunks),
    "chunk-extensions": ("an endless page in chunks of a byte with long extensions", _chunk_extensions),
    "drip": ("a page byte by byte, as fast as it is read", _drip),
}
