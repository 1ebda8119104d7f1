#!/usr/bin/env python3
"""Computes how much of a node's CPU and memory is really free.

Offline it replays a JSON trace through the strategies and compares what each of them would have promised.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

# Nothing heavy is imported before the command line is known to be good: -h and a mistyped flag answer at once.
if TYPE_CHECKING:
    from model.nodemodel import ModelSettings, NodeEstimate
    from model.replay import Replay
    from model.series import Slice

__version__ = "0.1.0"

LOG = logging.getLogger("scroogevm")

STRATEGY_HELP = """\
strategies (T is what is to be seen as used; free = config - T):
  percentile   P-th percentile of the usage in the window
  doa          starts at what is booked, a step down after a calm slice, up after a full one
  greedy       highest per-slice percentile, half of any growth on top until the node is stable
  scroogevm    mean + r standard deviations; r shrinks while the node is stable (2 to 5)
  nsigma       mean + 5 standard deviations
  rclike       sum of the VMs' own peaks
  borg         booked / 1.1
  maxpeak      the larger of nsigma and rclike

example:
  scroogevm.py --load=decreasing-workload.json --strategy=all --output=results
"""


class UsageError(Exception):
    """The command line or what it names can't be used; the message is one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="scroogevm.py",
        description=__doc__,
        epilog=STRATEGY_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-s", "--strategy", metavar="NAME[,NAME...]|all", help="strategies to compute (default: all); see below"
    )
    parser.add_argument(
        "-d",
        "--debug",
        type=_whole_number(0),
        default=0,
        metavar="LEVEL",
        help="0: warnings only; 1: a line per scope and strategy; 2: pictures of the tiers too (default: 0)",
    )
    parser.add_argument("-l", "--load", metavar="TRACE.json", help="replay this trace")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="write dump-<strategy>.json and summary.csv there, replacing older ones; without it a single "
        "strategy's dump goes to the working directory and several strategies are only compared",
    )
    parser.add_argument(
        "-c", "--cpu", type=_percentage, default=90.0, metavar="PCT", help="percentile for CPU, 0 to 100 (default: 90)"
    )
    parser.add_argument(
        "-m", "--mem", type=_percentage, default=90.0, metavar="PCT", help="percentile for memory (default: 90)"
    )
    parser.add_argument(
        "-a",
        "--aggreg",
        type=_whole_number(1),
        default=1,
        metavar="N",
        help="average N successive samples before per-slice figures (default: 1)",
    )
    parser.add_argument(
        "-u",
        "--url",
        metavar="JSON",
        help="list of node URLs, overrides SCHED_NODES; with --load the one URL of the node whose trace it is",
    )
    parser.add_argument(
        "--stability",
        choices=("mean", "always", "never"),
        default="mean",
        help="how greedy and scroogevm tell that a slice resembles the ones before (default: mean)",
    )
    parser.add_argument(
        "--risk",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="in which share of the slices a promise may be broken, for the choice under the table (default: 0.05)",
    )
    parser.add_argument("--report", action="store_true", help="write report.html beside the dumps")
    parser.add_argument("--version", action="version", version=f"ScroogeVM {__version__}")
    return parser


def _whole_number(least: int):  # type: ignore[no-untyped-def]  # a type= for argparse
    def whole_number(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return number

    return whole_number


def _percentage(text: str) -> float:
    return _number_within(text, 100, "a percentage")


def _share(text: str) -> float:
    return _number_within(text, 1, "a share")


def _number_within(text: str, most: int, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} from 0 to {most}")
    return number


def chosen_strategies(text: str | None) -> tuple[str, ...]:
    """The names that ``--strategy`` asks for, each once, in its order."""
    from model.oversubscriptioncomputation import STRATEGIES

    names = list(dict.fromkeys(name.strip() for name in (text or "all").split(",")))
    unknown = [name for name in names if name not in STRATEGIES and name != "all"]
    if unknown:
        raise UsageError(f"--strategy: {unknown[0]!r} is none of {', '.join(STRATEGIES)}, all")
    return tuple(STRATEGIES) if "all" in names else tuple(names)


def node_of(text: str) -> str:
    """The node that ``--url`` names for a replay."""
    try:
        nodes = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError(f"--url: {text!r} is not JSON") from None
    if not isinstance(nodes, list) or not nodes or not all(isinstance(node, str) and node for node in nodes):
        raise UsageError('--url: not a list of URLs such as ["http://node:9100/metrics"]')
    if len(nodes) > 1:
        raise UsageError(f"--url: {len(nodes)} nodes, but a trace is of one")
    return str(nodes[0])


def replay(args: argparse.Namespace) -> int:
    """Replay a trace, write what was asked for, print the scores."""
    strategies = chosen_strategies(args.strategy)
    node_name = node_of(args.url) if args.url is not None else None
    folder = _output_folder(args.output)
    if args.report and folder is None:
        raise UsageError("--report needs --output FOLDER")

    from model.adapters.terminal import ProgressBar, print_scores
    from model.nodemodel import ModelSettings
    from model.oversubscriptioncomputation import StrategySettings
    from model.replay import Replay
    from model.stability import STABILITIES
    from model.trace import TraceError, read_trace

    bar = ProgressBar()
    try:
        with bar.busy(f"reading {Path(args.load).name}"):
            trace = read_trace(args.load)
    except TraceError as error:
        raise UsageError(str(error)) from None
    node_name = node_name or trace.config.node_name
    settings = ModelSettings(
        historical=trace.config.historical_occurences,
        strategies=strategies,
        cpu=StrategySettings(percentile=args.cpu, aggregation=args.aggreg),
        mem=StrategySettings(percentile=args.mem, aggregation=args.aggreg),
    )
    judge = STABILITIES[args.stability]
    outcome = Replay(trace, settings, {"cpu": judge, "mem": judge}).run(
        progress=bar.track, on_slice=_log_scopes(node_name, trace.config.positions)
    )
    with bar.busy("writing"):
        _write(args, folder, outcome, settings, node_name)
    print_scores(outcome.scores(), args.risk)
    return 0


def _output_folder(name: str | None) -> Path | None:
    if name is None:
        return None
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output: {name!r} is not a folder")
    return folder


def _log_scopes(node_name: str, positions: int):  # type: ignore[no-untyped-def]  # Replay.run types it
    from model.trace import printable

    node, slices = printable(node_name), 0

    def log(finished: Slice, estimate: NodeEstimate) -> None:
        nonlocal slices
        slices += 1
        if slices % positions or not LOG.isEnabledFor(logging.INFO):
            return
        for strategy, cpu in estimate.cpu.by_strategy.items():
            mem = estimate.mem.by_strategy[strategy]
            LOG.info(
                "%s scope %d %s: %d VMs, booked %.1f cores %.0f MB, free %.1f cores %.0f MB, published %.1f cores %.0f MB",
                node,
                slices // positions,
                strategy,
                len(finished.vms),
                finished.cpu.booked,
                finished.mem.booked,
                cpu.free,
                mem.free,
                cpu.published,
                mem.published,
            )

    return log


def _write(
    args: argparse.Namespace, folder: Path | None, outcome: Replay, settings: ModelSettings, node_name: str
) -> None:
    """Everything that was asked for appears, or nothing."""
    from model.adapters.files import staged
    from model.replay import dump_name
    from model.scoring import summary_csv

    if folder is None and len(settings.strategies) > 1 and args.debug < 2:
        return
    target = folder or Path()
    created = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with staged() as files:
            if folder is not None or len(settings.strategies) == 1:
                for strategy, text in outcome.dumps(node_name, args.stability):
                    name = dump_name(node_name, settings) if folder is None else f"dump-{strategy}.json"
                    files.write(target / name, text)
            if folder is not None:
                files.write(target / "summary.csv", summary_csv(outcome.scores()).encode())
            if args.report:
                from model.adapters.report import render_report
                from model.results import replay_results

                results = replay_results(Path(args.load).stem, node_name, outcome)
                files.write(target / "report.html", render_report(results, args.risk).encode())
            if args.debug >= 2:
                from model.adapters.figures import tiers_png

                for strategy in settings.strategies:
                    files.write(target / f"tiers-{strategy}.png", tiers_png(outcome.recorder, strategy, node_name))
    except OSError as error:
        if created:
            with contextlib.suppress(OSError):
                target.rmdir()
        raise UsageError(f"{error.filename or target}: {error.strerror}; nothing was written") from None


def main(argv: list[str] | None = None) -> int:
    try:
        args = build_parser().parse_args(argv)
        level = logging.INFO if args.debug else logging.WARNING
        logging.basicConfig(level=level, format="%(levelname)s %(message)s")
        if args.load is None:
            raise UsageError("nothing to do: name a trace with --load=TRACE.json (-h shows all)")
        return replay(args)
    except UsageError as error:
        print(f"scroogevm.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("scroogevm.py: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has left; without this the interpreter complains at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
