"""Serves the pages of simulated workers over HTTP, with faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from aiohttp import web

from misc.fakeworkers.faults import ANSWERS, EVENTS, NO_FAULT
from misc.fakeworkers.lies import LIES, Liar
from misc.fakeworkers.loads import LOADS
from misc.fakeworkers.machines import Plan, Worker, build_workers
from misc.fakeworkers.pages import RENDERERS
from misc.fakeworkers.responses import Fault, PageRequest, page_response
from model.common.threads import start_thread


class FakeWorkers:
    """An HTTP server with the pages of all workers of a plan.

    Parameters
    ----------
    plan : Plan
    host : str
        Address to listen on.
    port : int
        0 = any free port; see ``base_url``.
    clock : callable
        Returns Unix seconds.
    workers : sequence of Worker, optional
        Instead of those that are built by the plan, one for each of its number.

    Attributes
    ----------
    base_url : str
        Set by :meth:`start`.
    requests : int
        Number of requests for pages.
    """

    def __init__(
        self,
        plan: Plan,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.time,
        workers: Sequence[Worker] | None = None,
    ) -> None:
        self.plan = plan
        self.base_url = ""
        self.requests = 0
        self.workers = build_workers(plan) if workers is None else list(workers)
        self._host, self._port, self._clock = host, port, clock
        self._faults: dict[int, Fault] = {}
        self._pages: dict[tuple[int, str], tuple[int, bytes]] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Start to listen; raises OSError if that fails."""
        app = web.Application()
        app.router.add_get(r"/worker-{index:\d{5}}/{endpoint}", self._serve)
        app.router.add_get("/control", self._get_state)
        app.router.add_post("/control", self._post_fault)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError:
            await self.stop()
            raise
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def stop(self) -> None:
        """Close all connections; does nothing if stopped already."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def url(self, index: int, endpoint: str | None = None) -> str:
        """URL of a page of a worker, by default the first one."""
        return f"{self.base_url}/worker-{index:05d}/{endpoint or self.plan.endpoints[0]}"

    def stubs(self) -> list[Any]:
        """All workers in the format of ``AGGREG_STUB_LIST``."""
        if self.plan.format != "labels":
            return [[self.url(i), self.plan.prefix] for i in range(self.plan.workers)]
        return [
            {
                "node": self.url(i, "node"),
                "node_exporter": self.url(i, "node"),
                "libvirt_exporter": self.url(i, "libvirt"),
            }
            for i in range(self.plan.workers)
        ]

    def page(self, index: int, endpoint: str) -> bytes:
        """The current page, without faults."""
        worker = self.workers[index]
        epoch = worker.epoch_ms(self._now_ms())
        cached = self._pages.get((index, endpoint))
        if cached is None or cached[0] != epoch:
            cached = self._pages[index, endpoint] = (epoch, RENDERERS[endpoint](worker, epoch))
        return cached[1]

    def inject(
        self,
        worker: int | Literal["all"],
        fault: str,
        *,
        seconds: float | None = None,
        count: int | None = None,
        delay_s: float | None = None,
        vm: int | None = None,
    ) -> None:
        """Inject a fault for some time or some requests, or until ``"none"`` is injected; or let an event happen.

        Call it from the thread of the server only; other threads use the control endpoint.

        Parameters
        ----------
        worker : int or "all"
        fault : str
            Key of ``ANSWERS``, ``LOADS`` or ``EVENTS``, or ``NO_FAULT``.
        seconds : float, optional
            Length of the fault.
        count : int, optional
            Number of requests.
        delay_s : float, optional
            Of the fault ``slow``.
        vm : int, optional
            Number of the VM of an event or a quota; default: the first possible one.

        Raises
        ------
        ValueError
            If there is no such worker, fault or VM.
        """
        indices = self._indices(worker)
        if fault in EVENTS:
            if seconds is not None or count is not None or delay_s is not None:
                raise ValueError(f"{fault}: is an event and takes no seconds, count or delay_s")
            for index in indices:
                self._apply_event(self.workers[index], fault, vm)
            return
        if fault not in ANSWERS and fault not in LOADS and fault != NO_FAULT:
            raise ValueError(f"fault: {fault!r} is not one of {', '.join([*ANSWERS, *LOADS, *EVENTS, NO_FAULT])}")
        if vm is not None and fault != "quota":
            raise ValueError(f"vm: {fault} affects the whole worker")
        if fault in LOADS and (count is not None or delay_s is not None):
            raise ValueError(f"{fault}: takes no count or delay_s")
        if fault in LOADS:
            self._begin_loads([self.workers[index] for index in indices], fault, seconds, vm)
        for index in indices:
            if fault not in LOADS:
                self.workers[index].end_load(self._now_ms())
            self._faults.pop(index, None)
            if fault != NO_FAULT:
                held = {name: self.page(index, name) for name in self.plan.endpoints} if fault == "stale" else {}
                until = self._clock() + seconds if seconds is not None else None
                delay = self.plan.slow_s if delay_s is None else delay_s
                liar = Liar(LIES[fault]) if fault in LIES else None
                self._faults[index] = Fault(fault, delay, until, count, held, liar)

    def _begin_loads(self, workers: Sequence[Worker], load: str, seconds: float | None, vm: int | None) -> None:
        """Begin a load of each worker, or of none when one of them cannot have it."""
        for worker in workers:
            if not worker.takes_events:
                raise ValueError(f"{load}: the VMs of worker {worker.index} use what a scheduler says")
            worker.effect_of(load, vm)
        now_ms = self._now_ms()
        for worker in workers:
            worker.begin_load(load, now_ms, None if seconds is None else now_ms + int(seconds * 1000), vm)

    def state(self) -> dict[str, Any]:
        """The plan, the current faults, and the VMs that are shut off (``away``), as JSON values."""
        now = self._clock()
        faults = {index: fault for index in list(self._faults) if (fault := self._current_fault(index)) is not None}
        return {
            "workers": self.plan.workers,
            "vms": self.plan.vms,
            "format": self.plan.format,
            "requests": self.requests,
            "faults": {
                str(index): {
                    "fault": fault.name,
                    "seconds_left": None if fault.until_s is None else round(fault.until_s - now, 3),
                    "count_left": fault.left,
                }
                for index, fault in sorted(faults.items())
            },
            "away": {
                str(worker.index): [worker.names[j] for j in np.flatnonzero(worker.away).tolist()]
                for worker in self.workers
                if worker.away.any()
            },
        }

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _indices(self, worker: int | str) -> range:
        if worker == "all":
            return range(self.plan.workers)
        if isinstance(worker, bool) or not isinstance(worker, int) or not 0 <= worker < self.plan.workers:
            raise ValueError(f"worker: {worker!r} is neither 0 to {self.plan.workers - 1} nor 'all'")
        return range(worker, worker + 1)

    def _apply_event(self, worker: Worker, event: str, vm: int | None) -> None:
        if not worker.takes_events:
            raise ValueError(f"{event}: the VMs of worker {worker.index} are started and stopped by a scheduler")
        at_ms = worker.epoch_ms(self._now_ms())
        if event == "reset":
            if vm is not None:
                raise ValueError("vm: reset affects the whole worker")
            worker.reboot(at_ms)
            return
        possible = np.flatnonzero(worker.away if event == "vm-returns" else ~worker.away).tolist()
        if vm is None and possible:
            vm = possible[0]
        if vm is None or vm not in possible:
            which = "" if vm is None else f" number {vm}"
            raise ValueError(f"vm: worker {worker.index} has no VM{which} for {event}")
        actions = {"vm-restart": worker.restart_vm, "vm-leaves": worker.stop_vm, "vm-returns": worker.start_vm}
        actions[event](vm, at_ms)

    def _current_fault(self, index: int) -> Fault | None:
        fault = self._faults.get(index)
        if fault is not None and (fault.left == 0 or (fault.until_s is not None and self._clock() >= fault.until_s)):
            del self._faults[index]
            return None
        return fault

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        index, endpoint = int(request.match_info["index"]), request.match_info["endpoint"]
        if index >= self.plan.workers or endpoint not in self.plan.endpoints:
            raise web.HTTPNotFound
        self.requests += 1
        fault = self._current_fault(index)
        if fault is not None and fault.liar is not None and fault.liar.lie.late:
            await asyncio.sleep(fault.liar.delay_s(endpoint))
        page = self.page(index, endpoint)
        if fault is None or fault.name in LOADS:
            return page_response(page)
        if fault.left is not None:
            fault.left -= 1
        random = np.random.default_rng([self.plan.seed, index, self._pages[index, endpoint][0]])
        return await ANSWERS[fault.name][1](PageRequest(request, fault, page, random))

    async def _get_state(self, _: web.Request) -> web.Response:
        return web.json_response(self.state())

    async def _post_fault(self, request: web.Request) -> web.Response:
        try:
            self.inject(**_parse_order(await request.read()))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(self.state())


def _parse_order(text: bytes) -> dict[str, Any]:
    """Parse the body of a POST to the control endpoint; raises ValueError."""
    try:
        order = json.loads(text)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(order, dict) or not {"worker", "fault"} <= order.keys():
        raise ValueError('not an object like {"worker": 3, "fault": "slow", "seconds": 10}')
    limits = {"seconds": (int, float), "count": (int,), "delay_s": (int, float), "vm": (int,)}
    unknown = order.keys() - limits.keys() - {"worker", "fault"}
    if unknown:
        raise ValueError(f"unknown key: {', '.join(sorted(unknown))}")
    if not isinstance(order["fault"], str):
        raise ValueError("fault: not a name")
    for name, kinds in limits.items():
        value = order.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value < 1e9):
            raise ValueError(f"{name}: {value!r} is not a {'whole ' if kinds == (int,) else ''}number of at least 0")
    return order


@contextlib.contextmanager
def in_thread(
    plan: Plan, host: str = "127.0.0.1", port: int = 0, clock: Callable[[], float] = time.time
) -> Iterator[FakeWorkers]:
    """Serve the workers from a thread as long as the block runs, for tests without an event loop."""
    fakes = FakeWorkers(plan, host, port, clock)
    loop = asyncio.new_event_loop()
    thread = start_thread("fakeworkers", loop.run_forever)
    try:
        asyncio.run_coroutine_threadsafe(fakes.start(), loop).result(30)
        yield fakes
    finally:
        asyncio.run_coroutine_threadsafe(fakes.stop(), loop).result(30)
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
