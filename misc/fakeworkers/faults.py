"""The faults: responses that replace a page, and events of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

from misc.fakeworkers.attacks import ATTACKS
from misc.fakeworkers.lies import LIES
from misc.fakeworkers.responses import EXPOSITION, PageRequest, page_response


async def _lie(request: PageRequest) -> web.StreamResponse:
    assert request.fault.liar is not None  # noqa: S101  # the server has set it
    if not request.fault.liar.lie.late:
        await asyncio.sleep(request.fault.liar.delay_s(request.endpoint))
    page = request.fault.liar.answer(request.endpoint, request.page)
    return web.Response(status=500) if page is None else page_response(page)


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
    response = web.StreamResponse(headers=EXPOSITION)
    response.content_length = len(request.page)
    response.force_close()
    await response.prepare(request.http)
    await response.write(request.page[: len(request.page) // 2])
    await response.write_eof()
    return response


async def _stale(request: PageRequest) -> web.StreamResponse:
    return page_response(request.fault.held[request.endpoint])


async def _redirect(request: PageRequest) -> web.StreamResponse:
    hop = int(request.http.query.get("hop", "0")) + 1
    return web.Response(status=302, headers={"Location": f"{request.http.path}?hop={hop}"})


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
    "redirect": ("a redirect to a redirect to ...", _redirect),
    "html": ("200 with an HTML page", _html),
    "garbage": ("200 with random bytes", _garbage),
    **ATTACKS,
    **{name: (lie.description, _lie) for name, lie in LIES.items()},
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
