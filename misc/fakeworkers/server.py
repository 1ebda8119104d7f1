#!/usr/bin/env python3
"""Plays many workers on one port: exporter pages of VMs that never existed, and every fault that a scraper must bear.

The same seed and time give the same page, whatever was asked before, for usage is looked up rather than advanced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from model.cli.main import require_libraries
from model.cli.parser import Parser, number, whole_number

with require_libraries("live"):
    import numpy as np
    from aiohttp import web

    from misc.fakeworkers.faults import ANSWERS, EVENTS, NO_FAULT, Fault, PageRequest, page_response
    from misc.fakeworkers.machines import Plan, Shapes, Worker, build_worker
    from misc.fakeworkers.pages import RENDERERS

FORMATS = ("vmprobe", "vmprobe-textfile", "labels")

DIALECTS = ("kumina", "tinkoff", "inovex")


class FakeWorkers:
    """The workers of a plan behind one HTTP server.

    Parameters
    ----------
    plan : Plan
    host : str
        Where to listen.
    port : int
        0 = any free one; ``base_url`` tells which.
    clock : callable
        Unix seconds.
    """

    def __init__(
        self, plan: Plan, host: str = "127.0.0.1", port: int = 0, clock: Callable[[], float] = time.time
    ) -> None:
        self.plan = plan
        self.base_url = ""
        self.requests = 0
        shapes = Shapes(plan.seed)
        self.workers = [build_worker(plan, shapes, index) for index in range(plan.workers)]
        self._host, self._port, self._clock = host, port, clock
        self._faults: dict[int, Fault] = {}
        self._pages: dict[tuple[int, str], tuple[int, bytes]] = {}
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen; OSError when that can't be done."""
        app = web.Application()
        app.router.add_get(r"/worker-{index:\d{5}}/{endpoint}", self._serve)
        app.router.add_get("/control", self._tell)
        app.router.add_post("/control", self._control)
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
        """Drop all connections; harmless when stopped already."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def url(self, index: int, endpoint: str | None = None) -> str:
        """Where a worker's page is; its first one unless told otherwise."""
        return f"{self.base_url}/worker-{index:05d}/{endpoint or self.plan.endpoints[0]}"

    def stubs(self) -> list[Any]:
        """All workers, as ``AGGREG_STUB_LIST`` names them."""
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
        """The page of now, as it is without a fault."""
        worker = self.workers[index]
        epoch = worker.epoch_ms(self._now_ms())
        known = self._pages.get((index, endpoint))
        if known is None or known[0] != epoch:
            known = self._pages[index, endpoint] = (epoch, RENDERERS[endpoint](worker, epoch))
        return known[1]

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
        """Put a fault in the way of a worker, for ``seconds`` or ``count`` requests or until ``"none"`` is put there.

        What happens to a VM happens to ``vm`` (its number), else to the first one that it can happen to.
        From a thread other than the server's, use the control endpoint.

        Raises
        ------
        ValueError
            When there is no such worker, fault or VM.
        """
        indices = self._indices(worker)
        if fault in EVENTS:
            if seconds is not None or count is not None or delay_s is not None:
                raise ValueError(f"{fault}: happens once, and takes no seconds, count or delay_s")
            for index in indices:
                self._happen(self.workers[index], fault, vm)
            return
        if fault not in ANSWERS and fault != NO_FAULT:
            raise ValueError(f"fault: {fault!r} is none of {', '.join([*ANSWERS, *EVENTS, NO_FAULT])}")
        if vm is not None:
            raise ValueError(f"vm: {fault} is a fault of the whole worker")
        for index in indices:
            self._faults.pop(index, None)
            if fault != NO_FAULT:
                held = {name: self.page(index, name) for name in self.plan.endpoints} if fault == "stale" else {}
                until = self._clock() + seconds if seconds is not None else None
                delay = self.plan.slow_s if delay_s is None else delay_s
                self._faults[index] = Fault(fault, delay, until, count, held)

    def state(self) -> dict[str, Any]:
        """What is served, which faults are in the way of whom, and who is away."""
        now = self._clock()
        faults = {index: fault for index in list(self._faults) if (fault := self._current(index)) is not None}
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

    def _happen(self, worker: Worker, event: str, vm: int | None) -> None:
        at_ms = worker.epoch_ms(self._now_ms())
        if event == "reset":
            if vm is not None:
                raise ValueError("vm: reset is a matter of the whole worker")
            worker.reset(at_ms)
            return
        able = np.flatnonzero(worker.away if event == "vm-returns" else ~worker.away).tolist()
        if vm is None and able:
            vm = able[0]
        if vm is None or vm not in able:
            which = "" if vm is None else f" number {vm}"
            raise ValueError(f"vm: worker {worker.index} has no VM{which} that {event} can happen to")
        {"vm-restart": worker.restart, "vm-leaves": worker.leave, "vm-returns": worker.come_back}[event](vm, at_ms)

    def _current(self, index: int) -> Fault | None:
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
        fault, page = self._current(index), self.page(index, endpoint)
        if fault is None:
            return page_response(page)
        if fault.left is not None:
            fault.left -= 1
        chance = np.random.default_rng([self.plan.seed, index, self._pages[index, endpoint][0]])
        return await ANSWERS[fault.name][1](PageRequest(request, fault, page, chance))

    async def _tell(self, _: web.Request) -> web.Response:
        return web.json_response(self.state())

    async def _control(self, request: web.Request) -> web.Response:
        try:
            self.inject(**_order(await request.read()))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response(self.state())


def _order(text: bytes) -> dict[str, Any]:
    """What a POST to the control endpoint asks for; ValueError when it can't be understood."""
    try:
        order = json.loads(text)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(order, dict) or not {"worker", "fault"} <= order.keys():
        raise ValueError('not an object like {"worker": 3, "fault": "slow", "seconds": 10}')
    limits = {"seconds": (int, float), "count": (int,), "delay_s": (int, float), "vm": (int,)}
    unknown = order.keys() - limits.keys() - {"worker", "fault"}
    if unknown:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
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
    """The workers, served by a thread of their own while the block runs: for tests that know no event loop."""
    fakes = FakeWorkers(plan, host, port, clock)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fakeworkers", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(fakes.start(), loop).result(30)
        yield fakes
    finally:
        asyncio.run_coroutine_threadsafe(fakes.stop(), loop).result(30)
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def build_parser() -> Parser:
    """The command line."""
    faults = {name: meaning for name, (meaning, _) in ANSWERS.items()} | EVENTS
    meanings = "\n".join(f"  {name:15} {meaning}" for name, meaning in faults.items())
    epilog = f"""faults:
{meanings}

POST /control {{"worker": 3, "fault": "slow", "seconds": 10}} puts one there ("worker": "all"; "count": requests instead
of seconds; "delay_s" for slow; "vm": number of the VM; fault "none" ends it). GET /control tells how things stand."""
    parser = Parser(prog="fakeworkers", description=__doc__, epilog=epilog)
    default = Plan()
    parser.add_argument("--format", choices=FORMATS, default=default.format, help="default: %(default)s")
    parser.add_argument("--dialect", choices=DIALECTS, default=default.dialect, help="of --format=labels")
    parser.add_argument("--prefix", default=default.prefix, help="of vmprobe's metrics (default: %(default)s)")
    for flag, kind, value, meaning in (
        ("--workers", whole_number(1), default.workers, "number of workers"),
        ("--vms", whole_number(0), default.vms, "VMs of each worker"),
        ("--seed", whole_number(0), default.seed, "another seed, other workers"),
        ("--other-metrics", whole_number(0), default.other_metrics, "node_exporter's own, where it is played"),
        ("--probe-delay-ms", whole_number(0), default.probe_delay_ms, "vmprobe looks so often; 0 = at each request"),
        ("--stats-period", whole_number(0), default.stats_period_s, "guests tell their memory so often, s; 0 = always"),
        ("--slow-s", number(0), default.slow_s, "how late a slow worker is"),
        ("--port", whole_number(0), 9900, "0 = any free one"),
    ):
        parser.add_argument(flag, type=kind, default=value, metavar="N", help=f"{meaning} (default: {value:g})")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s)")
    parser.add_argument("--fault", action="append", default=[], metavar="WORKER:NAME", help="a fault from the start on")
    parser.add_argument("--print-stubs", action="store_true", help="print AGGREG_STUB_LIST of all workers, and serve")
    parser.add_argument("--duration", type=number(0), metavar="S", help="stop after so many seconds")
    return parser


async def _run(fakes: FakeWorkers, print_stubs: bool, duration_s: float | None) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number_ in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number_, stop.set)
    await fakes.start()
    plan = fakes.plan
    print(f"serving {plan.workers} workers with {plan.vms} VMs at {fakes.url(0)} ...", flush=True)
    if print_stubs:
        print(json.dumps(fakes.stubs()), flush=True)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(stop.wait(), duration_s)
    await fakes.stop()


def main(argv: list[str] | None = None) -> int:
    """Serve until told to stop; the exit code."""
    parser = build_parser()
    args = vars(parser.parse_args(argv))
    host, port, duration = args.pop("host"), args.pop("port"), args.pop("duration")
    print_stubs, faults = args.pop("print_stubs"), args.pop("fault")
    if port > 65535:
        parser.error(f"argument --port: {port} is above 65535")
    if args["workers"] > 100_000:
        parser.error(f"argument --workers: {args['workers']} is above 100000")
    plan = Plan(stats_period_s=args.pop("stats_period"), **args)
    fakes = FakeWorkers(plan, host, port)
    for text in faults:
        worker, _, name = text.partition(":")
        try:
            fakes.inject(int(worker) if worker.isdecimal() else worker, name)
        except ValueError as error:
            parser.error(f"argument --fault: {text!r}: {error}")
    try:
        asyncio.run(_run(fakes, print_stubs, duration))
    except OSError as error:
        parser.error(f"{host}:{port}: {error.strerror or error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
