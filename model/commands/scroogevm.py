"""Compute how much CPU and memory of each node is really free, and publish it for a scheduler.

At the end of each slice the estimator reads the samples of every node from the store. With --load the program replays
a JSON trace instead and compares the strategies.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..cli.main import run_cli, run_interruptible
from ..cli.parser import Parser, add_debug_and_version, number, timestamp, whole_number

#: Summaries and names of strategies and detectors are repeated here so that -h imports no library; a test compares.
EPILOG = """\
strategies (T is the threshold: what counts as used; free = config - T):
  percentile   P-th percentile of the usage in the window
  doa          starts at what is booked; a step down after a calm slice, a step up after a full one
  greedy       highest per-slice percentile, plus half of any growth until the node is stable
  scroogevm    mean + r standard deviations; r shrinks while the node is stable (2 to 5)
  nsigma       mean + 5 standard deviations
  rclike       sum of the VMs' own peaks
  borg         booked / 1.1
  maxpeak      the larger of nsigma and rclike
  conformal    exceeded in a share --risk of the slices: forecasts plus a margin learnt from their errors
  clt          sum of the VMs' means plus z standard deviations of the sum; z by --risk

examples:
  scroogevm.py --check-config                       validate the settings
  scroogevm.py --strategy=scroogevm,percentile      compute both, publish the first
  scroogevm.py --status --watch                     show what is published
  scroogevm.py --export=week.json --since=2026-01-05 --url=http://worker1:9100/metrics
  scroogevm.py --load=week.json --output=results --report
  scroogevm.py --scan --prometheus=http://prometheus:9090      what the whole fleet may offer

Settings are read from the environment and from .env in the working directory; see the file dotenv. Options override
them. A replay reads no settings.
"""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="scroogevm.py", description=__doc__, epilog=EPILOG)
    _add_modes(parser)
    _add_model_options(parser)
    add_debug_and_version(
        parser, "0: warnings only; 1: a line per scope and strategy, and dumps; 2: pictures of the tiers too"
    )
    return parser


def _add_modes(parser: Parser) -> None:
    add = parser.add_argument
    add("-l", "--load", metavar="TRACE.json", help="replay this trace")
    add(
        *("-o", "--output"),
        metavar="FOLDER",
        help="folder for dumps, in place of older ones (default: the working directory); with --load for "
        "dump-<strategy>.json and summary.csv, without which several strategies are only compared",
    )
    add(
        "--compact",
        action="store_true",
        help="with --load: one dump-all.json for all strategies instead of a dump each; a fifteenth of the size",
    )
    add("--report", action="store_true", help="write report.html beside the dumps; needs --output")
    add(
        *("-u", "--url"),
        metavar="URL|JSON",
        help="a node URL, or a JSON list of them, instead of SCHED_NODES; with --load the name of the trace's node",
    )
    add("--once", action="store_true", help="compute the slices that have ended, publish, and exit")
    add("--check-config", action="store_true", help="validate the settings; no network, no file is created")
    add("--check", action="store_true", help="validate the settings, query the store for every node and Placement")
    for option, text in (
        ("--status", "show what is published; exit code 1 when a node is stale or outdated"),
        ("--watch", "the same, updated until Ctrl-C"),
    ):
        add(
            option,
            nargs="*",
            metavar="URL|FILE",
            help=f"{text}; of all masters whose status pages or files are named (default: the file of the settings)",
        )
    add("--json", action="store_true", help="with --load, --check or --status: print JSON instead of a table")
    add("--export", metavar="TRACE.json", help="write the stored samples of one node as a trace")
    add(
        "--since",
        type=timestamp,
        metavar="TIME",
        help="with --export or --scan: start; Unix seconds or 2026-01-31T12:00Z",
    )
    add("--until", type=timestamp, metavar="TIME", help="with --export or --scan: end (default: now)")
    _add_scan(parser)


def _add_scan(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "--scan",
        action="store_true",
        help="show what each node of the fleet may offer, after its whole history: from the store of the settings, "
        "from --prometheus, or from --load, a trace or a folder of traces; changes nothing",
    )
    add("--prometheus", metavar="URL", help="with --scan: a Prometheus server, instead of the store of the settings")
    add("--days", type=number(0.01, 3660), metavar="N", help="with --scan: length of the history (default: 30)")
    add("--node", metavar="NAME", help="with --scan: explain the figures of this node")
    add(
        "--simulate",
        action="store_true",
        help="with --scan: simulate a scheduler that fills what is published, with the VMs of the fleet; takes minutes",
    )
    add("--csv", action="store_true", help="with --scan: print CSV instead of a table")
    add("-j", "--jobs", type=whole_number(1), metavar="N", help="with --scan: worker processes (default: one per core)")
    add("--dask", metavar="ADDRESS", help="with --scan: compute on this Dask cluster, e.g. tcp://scheduler:8786")


def _add_model_options(parser: Parser) -> None:
    add = parser.add_argument
    add(
        *("-s", "--strategy"),
        metavar="NAME[,NAME...]|all",
        help="strategies to compute; the first is published (default: SCHED_STRATEGY or clt; with --load: all)",
    )
    add("-c", "--cpu", type=number(0, 100), metavar="PCT", help="percentile for CPU (default: 90)")
    add("-m", "--mem", type=number(0, 100), metavar="PCT", help="percentile for memory (default: 90)")
    add(
        *("-a", "--aggreg"),
        type=whole_number(1),
        metavar="N",
        help="average N successive samples before the figures of a slice (default: 1)",
    )
    add(
        "--stability",
        metavar="NAME",
        help="detector of stable slices for greedy and scroogevm: mean, range, always, never (default: mean)",
    )
    add(
        "--risk",
        type=number(0, 1),
        metavar="SHARE",
        help="target risk: the share of slices that may be violated; conformal (above 0, up to 0.3) and clt (up to "
        "0.5) aim at it, and it orders the table (default: SCHED_RISK or 0.01; with --load: 0.05)",
    )
    for name, title in (("cpu", "CPU"), ("mem", "memory")):
        add(
            f"--risk-{name}",
            type=number(0, 1),
            metavar="SHARE",
            help=f"target risk for {title} alone (default: "
            + ("--risk)" if name == "cpu" else "SCHED_RISK_MEM or 0.001; with --load: --risk)"),
        )
    parser.add_argument(
        "--guards",
        action=argparse.BooleanOptionalAction,
        help="lower what is published, so that a scheduler may fill it (default: SCHED_GUARDS or yes; with --load: no)",
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.status, args.watch = args.status if args.watch is None else args.watch, args.watch is not None
    _check_combination(parser, args)
    job, setup = (_serve, "live") if args.load is None else (_replay, "offline")
    if args.scan:
        job = _scan
    return run_interruptible(lambda: run_cli(parser, lambda: job(args), setup), lambda: _interrupted(args))


_MODES = ("scan", "load", "export", "status", "once", "check", "check_config")


def _check_combination(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse options that exclude or need each other."""
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    modes = [name for name in _MODES if name in given]
    if args.scan and modes == ["scan", "load"]:
        modes = ["scan"]
    if len(modes) > 1:
        parser.error(" and ".join(f"--{name.replace('_', '-')}" for name in modes) + " exclude each other")
    for option, possible in (
        ("report", ("load",)),
        ("compact", ("load",)),
        ("since", ("export", "scan")),
        ("until", ("export", "scan")),
        ("json", ("load", "check", "status", "scan")),
        *((option, ("scan",)) for option in ("prometheus", "days", "node", "simulate", "csv", "jobs", "dask")),
    ):
        if option in given and not {*possible} & {*modes}:
            parser.error(f"--{option} needs {' or '.join(f'--{name}' for name in possible)}")
    if args.watch and args.json:
        parser.error("--watch and --json exclude each other")
    for option in ("report", "compact"):
        if option in given and args.output is None:
            parser.error(f"--{option} needs --output=FOLDER")
    if args.export is not None and args.since is None:
        parser.error("--export needs --since=TIME")
    for one, other in (
        ("json", "csv"),
        ("node", "simulate"),
        ("csv", "simulate"),
        ("prometheus", "load"),
        ("days", "since"),
        ("jobs", "dask"),
    ):
        if args.scan and {one, other} <= given:
            parser.error(f"--{one} and --{other} exclude each other")
    if args.scan and args.load is not None and {"since", "until", "days"} & given:
        parser.error("--since, --until and --days need a store; a trace is scanned as a whole")
    if args.output is not None and args.load is None and not args.scan and not (args.debug and modes in ([], ["once"])):
        parser.error("--output needs --load, or --debug=1 for the dumps of a daemon")


def _serve(args: argparse.Namespace) -> int:
    from ..estimator import options
    from . import configuration  # noqa: F401  # declares all settings: a key of another program is not misspelt

    if args.check_config:
        return _check_config(args)
    if args.status is not None:
        from ..estimator.status_command import run_status

        return run_status(options.StatusOptions(args.watch, args.json, tuple(args.status)))
    from ..cli.model_options import given_model_options
    from ..estimator.settings import nodes_of_option

    nodes = nodes_of_option(args.url)
    if args.check:
        from ..estimator.check_command import run_check

        return run_check(options.CheckOptions(nodes, args.debug, args.json))
    if args.export is not None:
        from ..estimator.export_command import run_export

        return run_export(options.ExportOptions(Path(args.export), nodes, args.since, args.until, args.debug))
    from ..estimator.daemon import run

    output = None if args.output is None else Path(args.output)
    return run(options.EstimatorOptions(nodes, output, args.debug, args.once, given_model_options(args)))


def _scan(args: argparse.Namespace) -> int:
    from ..cli.model_options import given_model_options
    from ..estimator.settings import nodes_of_option
    from ..scan.command import run_scan
    from ..scan.options import ScanOptions
    from . import configuration  # noqa: F401  # declares all settings: a key of another program is not misspelt

    return run_scan(
        ScanOptions(
            traces=args.load,
            prometheus=args.prometheus,
            nodes=nodes_of_option(args.url),
            node=args.node,
            since_s=args.since,
            until_s=args.until,
            days=30.0 if args.days is None else args.days,
            output=None if args.output is None else Path(args.output),
            simulate=args.simulate,
            json=args.json,
            csv=args.csv,
            jobs=args.jobs,
            dask=args.dask,
            debug=args.debug,
            model=given_model_options(args),
        )
    )


def _check_config(args: argparse.Namespace) -> int:
    from ..cli.model_options import given_model_options
    from ..common.environment import environment
    from ..estimator.settings import estimator_settings, nodes_of_option
    from .configuration import check_settings

    nodes, given = nodes_of_option(args.url), given_model_options(args)
    return check_settings(lambda: estimator_settings(environment(), nodes, given))


def _replay(args: argparse.Namespace) -> int:
    from ..cli.model_options import ModelOptions, given_model_options, strategies_of
    from ..common.logs import set_up_logging
    from ..replay import command
    from ..replay.options import ReplayOptions

    set_up_logging(args.debug > 0)
    model = ModelOptions(**given_model_options(args))
    options = ReplayOptions(
        trace=args.load,
        strategies=strategies_of(model, "all"),
        node_name=None if args.url is None else command.node_of(args.url),
        output=None if args.output is None else command.output_folder(args.output),
        compact=args.compact,
        report=args.report,
        debug=args.debug,
        json=args.json,
        model=model,
    )
    return command.run(options)


def _interrupted(args: argparse.Namespace) -> int:
    if args.load is None and args.export is None and not args.once and not args.scan:
        return 0
    what = "" if args.once else ", nothing was written"
    print(f"scroogevm.py: interrupted{what}", file=sys.stderr)
    return 130
