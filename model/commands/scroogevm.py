"""Computes how much of each node's CPU and memory is really free, and publishes it for a scheduler.

At the end of each slice it reads what the store has of every node. With --load it replays a JSON trace instead, and
compares what each strategy would have promised.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ..cli.main import run_cli, run_interruptible
from ..cli.parser import Parser, add_debug_and_version, number, timestamp, whole_number

EPILOG = """\
strategies (T is what is to be seen as used; free = config - T):
  percentile   P-th percentile of the usage in the window
  doa          starts at what is booked, a step down after a calm slice, up after a full one
  greedy       highest per-slice percentile, half of any growth on top until the node is stable
  scroogevm    mean + r standard deviations; r shrinks while the node is stable (2 to 5)
  nsigma       mean + 5 standard deviations
  rclike       sum of the VMs' own peaks
  borg         booked / 1.1
  maxpeak      the larger of nsigma and rclike
  conformal    exceeded in a share --risk of the slices: forecasts, and a margin learnt from their own errors

examples:
  scroogevm.py --strategy=scroogevm,percentile      estimate, publish the first, keep the other for comparison
  scroogevm.py --status --watch                     look at what is published
  scroogevm.py --export=week.json --since=2026-01-05 --url='["http://worker1:9100/metrics"]'
  scroogevm.py --load=week.json --output=results --report

Settings come from the environment and from .env in the working directory; the file dotenv explains each of them.
"""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="scroogevm.py", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add(
        *("-s", "--strategy"),
        metavar="NAME[,NAME...]|all",
        help="strategies to compute; the first is the one that is published (default: scroogevm; with --load: all)",
    )
    add("-l", "--load", metavar="TRACE.json", help="replay this trace")
    add(
        *("-o", "--output"),
        metavar="FOLDER",
        help="where dumps go, in place of older ones (default: the working directory); with --load "
        "dump-<strategy>.json and summary.csv, and without it several strategies are only compared",
    )
    add("-c", "--cpu", type=number(0, 100), default=90.0, metavar="PCT", help="percentile for CPU (default: 90)")
    add("-m", "--mem", type=number(0, 100), default=90.0, metavar="PCT", help="percentile for memory (default: 90)")
    add(
        *("-a", "--aggreg"),
        type=whole_number(1),
        default=1,
        metavar="N",
        help="average N successive samples before per-slice figures (default: 1)",
    )
    add(
        *("-u", "--url"),
        metavar="JSON",
        help="list of node URLs, instead of SCHED_NODES; with --load one, the name of the node whose trace it is",
    )
    add("--once", action="store_true", help="estimate the slices that have ended, publish, and leave")
    add("--check", action="store_true", help="validate the settings, ask the store for every node, tell what answered")
    add("--status", action="store_true", help="show what is published, as a table")
    add("--watch", action="store_true", help="the same, kept on the screen until Ctrl-C")
    add("--export", metavar="TRACE.json", help="write what the store has of one node as a trace")
    add(
        "--since", type=timestamp, metavar="TIME", help="with --export: from then on; Unix seconds or 2026-01-31T12:00Z"
    )
    add("--until", type=timestamp, metavar="TIME", help="with --export: up to then (default: now)")
    add(
        "--stability",
        choices=("mean", "always", "never"),
        default="mean",
        help="how greedy and scroogevm tell that a slice resembles the ones before (default: mean)",
    )
    add(
        "--risk",
        type=number(0, 1),
        default=0.05,
        metavar="SHARE",
        help="in which share of the slices a promise may be broken: the aim of conformal (above 0, up to 0.3); decides "
        "the order of the table, too (default: 0.05)",
    )
    for name, called in (("cpu", "CPU"), ("mem", "memory")):
        add(
            f"--risk-{name}",
            type=number(0, 1),
            metavar="SHARE",
            help=f"the aim of conformal for {called} alone (default: --risk)",
        )
    add("--report", action="store_true", help="write report.html beside the dumps; needs --output")
    add_debug_and_version(
        parser, "0: warnings only; 1: a line per scope and strategy, and dumps; 2: pictures of the tiers too"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.status = args.status or args.watch
    _refuse_what_makes_no_sense(parser, args)
    job, setup = (_serve, "live") if args.load is None else (_replay, "offline")
    return run_interruptible(lambda: run_cli(parser, lambda: job(args), setup), lambda: _interrupted(args))


def _refuse_what_makes_no_sense(parser: Parser, args: argparse.Namespace) -> None:
    modes = [name for name in ("load", "export", "status", "once", "check") if getattr(args, name) not in {None, False}]
    if len(modes) > 1:
        parser.error(" and ".join(f"--{name}" for name in modes) + " exclude each other")
    for option, mode in (("report", "load"), ("since", "export"), ("until", "export")):
        if getattr(args, option) not in {None, False} and mode not in modes:
            parser.error(f"--{option} needs --{mode}")
    if args.report and args.output is None:
        parser.error("--report needs --output=FOLDER")
    if args.export is not None and args.since is None:
        parser.error("--export needs --since=TIME")
    if args.output is not None and args.load is None and not (args.debug and modes in ([], ["once"])):
        parser.error("--output needs --load, or --debug=1 for the dumps of a daemon")


def _serve(args: argparse.Namespace) -> int:
    from ..estimator import options

    as_json = getattr(args, "json", False)
    if args.status:
        from ..estimator.status_command import run_status

        return run_status(options.StatusOptions(watch=args.watch, json=as_json))
    nodes = options.parse_url_option(args.url)
    if args.check:
        from ..estimator.check_command import run_check

        return run_check(options.CheckOptions(nodes, args.debug, as_json))
    if args.export is not None:
        from ..estimator.export_command import run_export

        return run_export(options.ExportOptions(Path(args.export), nodes, args.since, args.until, args.debug))
    from ..estimator.daemon import run

    output = None if args.output is None else Path(args.output)
    return run(options.EstimatorOptions(nodes, output, args.debug, args.once, model=args))


def _replay(args: argparse.Namespace) -> int:
    from ..replay import command

    logging.basicConfig(level=logging.INFO if args.debug else logging.WARNING, format="%(levelname)s %(message)s")
    return command.run(args)


def _interrupted(args: argparse.Namespace) -> int:
    if args.load is None and args.export is None and not args.once:
        return 0
    what = "" if args.once else ", nothing was written"
    print(f"scroogevm.py: interrupted{what}", file=sys.stderr)
    return 130
