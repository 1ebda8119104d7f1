"""Serves exporter pages of simulated worker nodes: counters that only grow, and faults on demand.

The same seed gives the same workers. Their pages are those of vmprobe, bare or behind node_exporter, or of
node_exporter and a libvirt exporter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal

from misc.fakeworkers.faults import ANSWERS, EVENTS
from misc.fakeworkers.loads import LOADS
from misc.fakeworkers.machines import FORMATS, Plan
from misc.fakeworkers.pages import DIALECTS
from misc.fakeworkers.server import FakeWorkers
from model.cli.parser import Parser, number, whole_number


def build_parser() -> Parser:
    """Build the parser of the command line."""
    faults = {name: meaning for name, (meaning, _) in ANSWERS.items()} | LOADS | EVENTS
    descriptions = "\n".join(f"  {name:16} {meaning}" for name, meaning in faults.items())
    epilog = f"""faults:
{descriptions}

POST /control {{"worker": 3, "fault": "slow", "seconds": 10}} injects one ("worker": "all"; "count": requests instead of
seconds; "delay_s" for slow; "vm": number of the VM of an event or quota; fault "none" ends it). GET /control shows the
state."""
    parser = Parser(prog="fakeworkers", description=__doc__, epilog=epilog)
    default = Plan()
    parser.add_argument("--format", choices=FORMATS, default=default.format, help="default: %(default)s")
    parser.add_argument(
        "--dialect",
        choices=DIALECTS,
        default=default.dialect,
        help="libvirt exporter of --format=labels (default: %(default)s)",
    )
    parser.add_argument("--prefix", default=default.prefix, help="of vmprobe's metrics (default: %(default)s)")
    for flag, kind, value, meaning in (
        ("--workers", whole_number(1), default.workers, "number of workers"),
        ("--vms", whole_number(0), default.vms, "VMs of each worker"),
        ("--seed", whole_number(0), default.seed, "seed of the random numbers"),
        ("--other-metrics", whole_number(0), default.other_metrics, "series of node_exporter itself"),
        ("--probe-delay-ms", whole_number(0), default.probe_delay_ms, "period of vmprobe, ms; 0 = each request"),
        (
            "--stats-period",
            whole_number(0),
            default.stats_period_s,
            "period of the guests' memory statistics, s; 0 = always current",
        ),
        ("--slow-s", number(0), default.slow_s, "delay of a slow worker, s"),
        ("--cores", whole_number(0), default.cores, "CPUs of each worker; 0 = enough for all vCPUs"),
        ("--port", whole_number(0), 9900, "0 = any free port"),
    ):
        parser.add_argument(flag, type=kind, default=value, metavar="N", help=f"{meaning} (default: {value:g})")
    parser.add_argument("--vcpu-delay", action="store_true", help="node_exporter serves what misc/vcpu-delay.sh writes")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--fault", action="append", default=[], metavar="WORKER:NAME", help="a fault from the start")
    parser.add_argument("--print-stubs", action="store_true", help="print AGGREG_STUB_LIST of all workers, then serve")
    parser.add_argument("--duration", type=number(0), metavar="S", help="stop after this time, seconds")
    return parser


async def _run(fakes: FakeWorkers, print_stubs: bool, duration_s: float | None) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stop.set)
    await fakes.start()
    plan = fakes.plan
    print(f"serving {plan.workers} workers with {plan.vms} VMs at {fakes.url(0)} ...", flush=True)
    if print_stubs:
        print(json.dumps(fakes.stubs()), flush=True)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(stop.wait(), duration_s)
    await fakes.stop()


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGINT, SIGTERM or the end of the duration; returns the exit code."""
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
