#!/usr/bin/env python3
"""Simulates a fleet whose scheduler fills what is published: the closed loop.

VMs arrive, are placed where the published capacity has room, stay, and use what they used in the traces. Compared are
strategies, fixed allocation ratios, the best fixed ratio in hindsight and an oracle. The input is a workload file, or
traces: the arrivals that they show are replayed; where they show none, two workloads are drawn of their VMs, a flood
above capacity and a finite stream. Prints a table per workload, and writes simulation.csv (a row per setting and seed),
pictures and report.html to the output folder. After an interruption the same command continues.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.cli.main import require_libraries, run_cli, run_interruptible
from model.cli.parser import Parser, list_of, name_in, number, whole_number

with require_libraries("offline"):
    from model.cli.model_options import risk_fault
    from model.common.errors import UsageError
    from model.common.text import printable
    from model.oversubscriptioncomputation import STRATEGIES

if TYPE_CHECKING:
    from model.simulation.arrivals import ArrivalList

_ARRIVAL_FORMATS = ("nova", "cloudfactory", "alibaba", "huawei", "azure-packing")
_MIXES = ("even", "busy", "turn")
_ARRIVALS = ("flood", "ramp", "finite", "replay")
#: Seeds in one range, so that a mistyped one does not start a million runs.
_MOST_SEEDS = 1000


def _seeds(text: str) -> list[int]:
    """An argument type: ``1-5``, ``1,2,3`` or both."""
    seeds: list[int] = []
    for word in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", word)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < first + _MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"{word!r} is neither a seed nor a range such as 1-5")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="simulate.py", description=__doc__, epilog=_epilog())
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="workload files, JSON traces, or folders of them")
    _add_settings(parser)
    _add_fleet(parser)
    _add_workload(parser)
    _add_arrivals(parser)
    _add_output(parser)
    return parser


def _add_settings(parser: Parser) -> None:
    add = parser.add_argument_group("what is compared").add_argument
    add(
        *("-s", "--strategy"),
        type=list_of(name_in((*STRATEGIES, "all"))),
        default=["clt"],
        metavar="NAME[,NAME...]|all",
        help="strategies (default: clt)",
    )
    users = ", ".join(name for name, strategy in STRATEGIES.items() if "risk" in strategy.parameters)
    add(
        "--risk",
        type=list_of(number(0, 1)),
        default=[0.01],
        metavar="SHARE[,SHARE...]",
        help=f"target risk of {users}, above 0 and up to 0.3 (default: 0.01)",
    )
    add(
        "--risk-mem",
        type=number(0, 1),
        default=0.001,
        metavar="SHARE",
        help="their target risk for memory, with --publish=both (default: 0.001)",
    )
    add(
        "--ratio",
        type=list_of(number(1, 16)),
        default=[1.0, 2.0, 4.0],
        metavar="RATIO[,RATIO...]",
        help="fixed allocation ratios for CPU, beside the best one (default: 1,2,4)",
    )
    add("--guards", action="store_true", help="publish what the guards leave of a figure (default)")
    add("--no-guards", action="store_true", help="publish the bare figure; with --guards both, a row each")
    add("--waits", action="store_true", help="also measure how long VMs wait for CPU, as exporters with that figure do")
    add(
        "--no-waits",
        action="store_true",
        help="measure usage alone, which is cut at the size of a node (default); with --waits both, a row each",
    )
    add(
        "--oracle",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="simulate a scheduler that has the future usage of every VM: an upper bound (default: yes)",
    )
    add(
        "--harm",
        type=number(0, 1),
        default=0.01,
        metavar="SHARE",
        help="accepted share of node-slices over capacity: decides the best fixed ratio and the answer (default: 0.01)",
    )
    add(
        "--hosts-needed",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="search for the smallest fleet that takes 99%% of the vCPUs: about eight more runs for each "
        "(default: only for finite streams that are drawn)",
    )


def _add_fleet(parser: Parser) -> None:
    add = parser.add_argument_group("fleet and scheduler").add_argument
    add("--nodes", type=whole_number(1), default=20, metavar="N", help="number of nodes (default: 20)")
    add("--node-cores", type=number(1, 1e6), default=64.0, metavar="N", help="cores of a node (default: 64)")
    add(
        "--node-memory-mb",
        type=number(4096, 1e12),
        default=4.0e6,
        metavar="MB",
        help="memory of a node (default: 4000000, so much that CPU binds)",
    )
    add(
        "--weigher",
        choices=("spread", "pack"),
        default="spread",
        help="place a VM on the freest node that fits, or on the fullest (default: spread)",
    )
    add(
        "--publish",
        choices=("cpu", "both"),
        default="cpu",
        help="whether the strategy sets the capacity for memory too (default: cpu)",
    )
    add("--slice-s", type=number(1, 1e9), default=3600.0, metavar="S", help="length of a slice (default: 3600)")
    add("--scope-s", type=number(1, 1e9), default=86400.0, metavar="S", help="length of a scope (default: 86400)")
    add(
        "--historical",
        type=whole_number(0),
        default=3,
        metavar="N",
        help="earlier slices in a window, SCHED_SCOPE_HISTORICAL (default: 3)",
    )
    add(
        "--warm-up-s",
        type=number(0, 1e12),
        metavar="S",
        help="slices that end before are not counted (default: four days, and at most a third of the workload)",
    )


def _add_workload(parser: Parser) -> None:
    add = parser.add_argument_group("workloads that are drawn from traces").add_argument
    add(
        "--arrivals",
        type=list_of(name_in(_ARRIVALS)),
        default=[],
        metavar="KIND[,KIND...]",
        help="flood: at a constant rate; ramp: at a rate that rises from 0; finite: in the first half of the time; "
        "replay: those of the traces (default: replay where VMs arrive or leave in the traces, else flood,finite)",
    )
    add(
        "--mix",
        choices=_MIXES,
        default="even",
        help="draw all VMs alike; busy ones more often; or evenly in the first half of the time and then busy ones "
        "(default: even)",
    )
    add(
        "--same-clock",
        action="store_true",
        help="all VMs replay the same days; by default each one begins with a random day",
    )
    add(
        "--days",
        type=number(0.01, 3660),
        metavar="N",
        help="length of the workload (default: 14, and the whole list of arrivals)",
    )
    add(
        "--per-node-hour",
        type=number(0.001, 1e4),
        default=6.0,
        metavar="N",
        help="VMs that arrive per node and hour (default: 6)",
    )
    add("--seeds", type=_seeds, default=[1, 2, 3], metavar="LIST", help="seeds, such as 1-5 or 1,2,3 (default: 1-3)")


def _add_arrivals(parser: Parser) -> None:
    add = parser.add_argument_group(
        "arrivals of a list", "its VMs use what those of the traces used, VMs of the same size where there are any"
    ).add_argument
    add("--arrival-list", type=_path, metavar="FILE", help="VMs that were created and deleted, and their sizes")
    add(
        "--arrival-format",
        choices=_ARRIVAL_FORMATS,
        help="nova: instances as JSON or CSV; cloudfactory: vms.json, with its own usage; alibaba: "
        "openb_pod_list_*.csv; huawei: Huawei-East-1; azure-packing: its SQLite file, "
        "whose machines are nodes of the fleet",
    )
    add("--flavors", type=_path, metavar="FILE", help="nova: output of 'openstack flavor list --all -f json'")
    add(
        "--arrival-slice-s",
        type=number(1, 1e9),
        default=3600.0,
        metavar="S",
        help="cloudfactory: seconds of a slice, first number of its --temporality (default: 3600)",
    )
    add("--from-day", type=number(0, 1e5), default=0.0, metavar="N", help="where in the list to begin (default: 0)")


def _add_output(parser: Parser) -> None:
    add = parser.add_argument_group("output and workers").add_argument
    add("-o", "--output", type=_path, metavar="FOLDER", help="folder of simulation.csv, pictures and report.html")
    add("--json", action="store_true", help="print JSON instead of tables")
    add(
        "--save-workload",
        type=_path,
        metavar="FILE",
        help="write the workload to a file; it needs one input, kind of arrivals and seed",
    )
    add("-j", "--jobs", type=whole_number(1), metavar="N", help="worker processes (default: one per core)")
    add("--dask", metavar="ADDRESS", help="simulate on this Dask cluster, such as tcp://master:8786")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def _epilog() -> str:
    lines = (f"  {name:12} {strategy.summary}" for name, strategy in STRATEGIES.items())
    return "\n".join(["strategies:", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate; the exit code, 2 when an input could not be used or a run failed."""
    parser = build_parser()
    args = parser.parse_args(argv)
    setup = "offline" if args.dask is None else "live"
    return run_interruptible(lambda: run_cli(parser, lambda: _run(args), setup), lambda: _interrupted(args))


def _run(args: Any) -> int:
    from model.simulation.command import run_simulation
    from model.simulation.draw import DrawSettings
    from model.simulation.fleet import FleetSize
    from model.simulation.grid import settings_of
    from model.simulation.options import SimulationOptions

    # Both options together give two rows per strategy.
    guards = [True] * (args.guards or not args.no_guards) + [False] * args.no_guards
    waits = [False] * (args.no_waits or not args.waits) + [True] * args.waits
    strategies = list(STRATEGIES) if "all" in args.strategy else args.strategy
    for risk in args.risk:
        if fault := risk_fault(risk, tuple(strategies)):
            raise UsageError(f"--risk: {fault}")
    if fault := risk_fault(args.risk_mem, tuple(strategies)):
        raise UsageError(f"--risk-mem: {fault}")
    if not args.inputs and args.arrival_list is None:
        raise UsageError("no INPUT: name workload files, traces, or folders of them")
    return run_simulation(
        SimulationOptions(
            inputs=tuple(args.inputs),
            settings=tuple(settings_of(strategies, args.risk, args.ratio, guards, waits, oracle=args.oracle)),
            seeds=tuple(args.seeds),
            size=FleetSize(args.nodes, args.node_cores, args.node_memory_mb),
            weigher=args.weigher,
            slice_s=args.slice_s,
            scope_s=args.scope_s,
            historical=args.historical,
            warm_up_s=args.warm_up_s,
            publish_memory=args.publish == "both",
            memory_risk=args.risk_mem,
            arrivals=tuple(args.arrivals),
            draw=DrawSettings(per_node_hour=args.per_node_hour, mix=args.mix, same_clock=args.same_clock),
            arrival_list=_arrival_list(args),
            from_day=args.from_day,
            days=args.days,
            harm=args.harm,
            hosts_needed=args.hosts_needed,
            output=args.output,
            save_workload=args.save_workload,
            jobs=args.jobs,
            dask=args.dask,
            json=args.json,
        )
    )


def _arrival_list(args: Any) -> ArrivalList | None:
    if (args.arrival_list is None) != (args.arrival_format is None):
        raise UsageError("--arrival-list and --arrival-format: give both, or none")
    if args.flavors is not None and args.arrival_format != "nova":
        raise UsageError("--flavors: needs --arrival-format=nova")
    if args.arrival_list is None:
        return None
    from misc.tracesources.alibaba import read_alibaba_pods
    from misc.tracesources.azurepacking import read_azure_packing
    from misc.tracesources.cloudfactory import read_cloudfactory
    from misc.tracesources.grid import ConversionError
    from misc.tracesources.huawei import read_huawei_placement
    from misc.tracesources.nova import read_nova_flavors, read_nova_instances

    read: dict[str, Callable[[Path], ArrivalList]] = {
        "nova": lambda path: read_nova_instances(path, args.flavors and read_nova_flavors(args.flavors)),
        "cloudfactory": lambda path: read_cloudfactory(path, args.arrival_slice_s),
        "alibaba": read_alibaba_pods,
        "huawei": read_huawei_placement,
        "azure-packing": lambda path: read_azure_packing(path, args.node_cores, args.node_memory_mb),
    }
    try:
        return read[args.arrival_format](args.arrival_list)
    except ConversionError as error:
        raise UsageError(printable(str(error))) from None


def _interrupted(args: Any) -> int:
    advice = "" if args.output is None else "; run the same command to continue"
    print(f"simulate.py: interrupted{advice}", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
