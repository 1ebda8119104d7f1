"""Serves simulated workers, and places VMs on them by a published status file.

VMs arrive above what fits. A VM is started where its vCPUs and those booked fit into what is published: booked now +
free. Stale, outdated and closed nodes take nothing new. The VMs run on the workers until their time is over, so that
what is published next follows from where they were placed. misc/demo.sh --scheduler runs this with both daemons.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from misc.closedloop.demand import drawn_workload, given_workload
from misc.closedloop.loop import ClosedLoop, log_to
from misc.fakeworkers.hosts import Host
from misc.fakeworkers.machines import Plan
from misc.fakeworkers.server import FakeWorkers
from model.cli.parser import Parser, number, whole_number
from model.common.atomic_files import write_atomically
from model.publishers.status_file import StatusFileError
from model.simulation.fleet import FleetSize
from model.simulation.harm import Figures
from model.simulation.workload_file import WorkloadError

#: Slices of a "virtual day".
DAY = 24
#: How often the status file is looked at before the first figures, s.
_POLL_S = 0.2

_HEAD = "  slice   VMs   sold   used   over   free   refused"
_FIGURES = ("sold", "over", "worst_node", "unserved", "reported", "used", "accepted_vcpu", "hosted")


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(prog="closedloop", description=__doc__)
    parser.add_argument("--status", type=Path, required=True, metavar="FILE", help="the status file (STATE_ENDPOINT)")
    parser.add_argument("--log", type=Path, required=True, metavar="FILE", help="a line of JSON per event goes here")
    parser.add_argument("--figures", type=Path, required=True, metavar="FILE", help="the figures go here at the end")
    parser.add_argument("--workload", type=Path, metavar="FILE", help="a workload file; by default VMs are drawn")
    parser.add_argument("--check", action="store_true", help="only check the options and the workload file")
    for flag, kind, value, meaning in (
        ("--slices", whole_number(1), 100, "slices that VMs are placed in"),
        ("--slice-s", number(0.01), 3.0, "length of a slice, s"),
        ("--slice-steps", whole_number(1), 6, "steps of a slice, in which usage is constant"),
        ("--nodes", whole_number(1), 3, "number of workers"),
        ("--node-cores", whole_number(1), 16, "cores of each of them"),
        ("--node-memory-mb", whole_number(8192), 2**20, "memory of each of them, MB"),
        ("--per-node-hour", number(0), 6.0, "VMs drawn per node and slice"),
        ("--ratio", number(0.01), 3.0, "the fixed ratio to compare with"),
        ("--seed", whole_number(0), 1, "seed of the random numbers"),
        ("--port", whole_number(0), 0, "0 = any free port"),
    ):
        parser.add_argument(flag, type=kind, default=value, metavar="N", help=f"{meaning} (default: {value:g})")
    return parser


async def _run(fakes: FakeWorkers, names: list[str], loop: ClosedLoop, args: Namespace) -> None:
    stop, running = asyncio.Event(), asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        running.add_signal_handler(signal_number, stop.set)
    await fakes.start()
    print(f"serving {len(names)} workers of {args.node_cores} cores without VMs at {fakes.base_url}", flush=True)
    print(json.dumps(_stubs(fakes, names)), flush=True)
    placing = asyncio.ensure_future(_place_vms(loop, args))
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({placing, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if placing.done():
        placing.result()
        _print_figures(loop, args)
        await stopped
    placing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await placing
    await fakes.stop()


def _stubs(fakes: FakeWorkers, names: list[str]) -> list[dict[str, str]]:
    """The workers in the format of ``AGGREG_STUB_LIST``, under short names."""
    return [{**stub, "node": name} for stub, name in zip(fakes.stubs(), names, strict=True)]


async def _place_vms(loop: ClosedLoop, args: Namespace) -> None:
    while not loop.read_status(time.time()):
        await asyncio.sleep(_POLL_S)
    # Slices are aligned to the Unix epoch.
    begin_s = (time.time() // args.slice_s + 1) * args.slice_s
    step_s = args.slice_s / args.slice_steps
    print(_HEAD, flush=True)
    for i in range(loop.slices):
        for step in range(i * loop.slice_steps, (i + 1) * loop.slice_steps):
            await _sleep_until(begin_s + step * step_s)
            begin_ms, end_ms = (round(1000 * (begin_s + k * step_s)) for k in (step, step + 1))
            loop.run_step(step, begin_ms, end_ms, time.time())
        await _sleep_until(begin_s + (i + 1) * args.slice_s)
        one = loop.end_slice(i)
        print(
            f"{one.number:7} {one.vms:5} {one.sold:6.2f} {one.used:6.0%} {one.over:6} {one.free:6.1f} {one.refused:9}",
            flush=True,
        )


async def _sleep_until(at_s: float) -> None:
    # Also when it is late: the pages are served in between.
    await asyncio.sleep(max(at_s - time.time(), 0.0))


def _print_figures(loop: ClosedLoop, args: Namespace) -> None:
    strategy = loop.published[0].strategy or "no figures"
    rows = {
        f"{strategy}, published": {**_selected(loop.figures()), "reported": _known(loop.reported())},
        f"ratio {args.ratio:g}, simulated": _selected(loop.figures_of_ratio(args.ratio)),
    }
    print(f"\nAfter {loop.warm_up} slices of warm-up; the same VMs arrive at the fixed ratio:")
    print(f"  {'':24} {'sold':>6} {'over':>7} {'worst node':>11} {'unserved':>9} {'reported':>9}")
    for name, row in rows.items():
        cells = [_percent(row[key], width) for key, width in (("over", 7), ("worst_node", 11), ("unserved", 9))]
        print(f"  {name:24} {row['sold']:6.2f} {' '.join(cells)} {_percent(row['reported'], 9)}")
    sys.stdout.flush()
    figures = {"warm_up": loop.warm_up, "slices": loop.slices, "rows": rows}
    write_atomically(args.figures, json.dumps(figures, indent=1).encode() + b"\n")


def _selected(figures: Figures) -> dict[str, float | None]:
    return {name: _known(getattr(figures, name)) for name in _FIGURES}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _percent(share: float | None, width: int) -> str:
    return f"{'-' if share is None else f'{share:.2%}':>{width}}"


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.port > 65535:
        parser.error(f"argument --port: {args.port} is above 65535")
    steps, step_s = args.slices * args.slice_steps, args.slice_s / args.slice_steps
    try:
        if args.workload is None:
            drawn = (args.nodes, args.per_node_hour, DAY * args.slice_steps, steps, step_s, args.seed)
            workload = drawn_workload(*drawn)
        else:
            workload = given_workload(args.workload, steps, step_s)
    except WorkloadError as error:
        parser.error(f"argument --workload: {error}")
    if args.check:
        return 0
    names = [f"http://node{i}" for i in range(args.nodes)]
    plan = Plan(workers=args.nodes, vms=0, format="labels", dialect="tinkoff", stats_period_s=0)
    boot_ms = int(time.time() * 1000)
    hosts = [Host(plan, i, args.node_cores, args.node_memory_mb, boot_ms) for i in range(args.nodes)]
    fakes = FakeWorkers(plan, port=args.port, workers=hosts)
    try:
        with _opened(args.log) as log:
            loop = ClosedLoop(
                workload,
                hosts,
                names,
                FleetSize(args.nodes, args.node_cores, args.node_memory_mb),
                args.status,
                slices=args.slices,
                slice_steps=args.slice_steps,
                warm_up=min(DAY, args.slices // 3),
                log=log_to(log),
            )
            asyncio.run(_run(fakes, names, loop, args))
    except StatusFileError as error:
        print(f"closedloop: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        parser.error(f"{error.filename or 'the workers'}: {error.strerror or error}")
    return 0


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with path.open("w", buffering=1) as file:
        yield file.write
