#!/usr/bin/env python3
"""Many traces through strategies with several settings: what each is worth, and which of them nothing beats.

Writes results.csv (a row per trace, variant and resource), pooled.csv (all traces together), pareto.png (broken
promises against what is of use) and pictures of every trace. Judged is the published figure: a promise is broken when
the slice that follows uses more. Broken off, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.cli.main import run_cli, run_interruptible
from model.cli.parser import Parser, number, whole_number
from model.common.errors import UsageError

if TYPE_CHECKING:
    from model.evaluation.grid import Row
    from model.evaluation.result_cache import ResultCache
    from model.evaluation.tasks import Plan, Task


def _several(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """An argument type: values with commas between them, each once."""

    def parse(text: str) -> list[Any]:
        return list(dict.fromkeys(one(word.strip()) for word in text.split(",")))

    return parse


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument
    add("traces", nargs="+", metavar="TRACE|FOLDER", help="JSON traces, or folders of them")
    add("-o", "--output", required=True, metavar="FOLDER", help="where tables and pictures go")
    add("-s", "--strategy", default="all", metavar="NAME[,NAME...]|all", help="what is evaluated (default: all)")
    add(
        "--percentile",
        type=_several(number(0, 100)),
        default=[90.0],
        metavar="PCT[,PCT...]",
        help="of percentile and greedy (default: 90)",
    )
    add(
        "--aggreg",
        type=_several(whole_number(1)),
        default=[1],
        metavar="N[,N...]",
        help="how many successive samples doa, greedy and scroogevm average (default: 1)",
    )
    add(
        "--risk",
        type=_several(number(0, 1)),
        default=[0.05],
        metavar="SHARE[,SHARE...]",
        help="what conformal aims at, above 0 and up to 0.3 (default: 0.05)",
    )
    add(
        "--stability",
        type=_several(str),
        default=["mean"],
        metavar="NAME[,NAME...]",
        help="who tells greedy and scroogevm that a slice is like its past: mean, range, always, never (default: mean)",
    )
    add(
        "--after",
        type=whole_number(0),
        default=10,
        metavar="N",
        help="slices that a strategy has to learn before its promises count (default: 10)",
    )
    add("-j", "--jobs", type=whole_number(1), metavar="N", help="worker processes (default: one per core)")
    add(
        "--dask",
        metavar="ADDRESS",
        help="work on this Dask cluster, such as tcp://master:8786; its workers find the traces under the same paths",
    )
    add("--no-pictures", action="store_true", help="tables and pareto.png alone")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Evaluate; the exit code, 2 when a trace could not be read."""
    parser = build_parser()
    args = parser.parse_args(argv)
    setup = "offline" if args.dask is None else "live"
    return run_interruptible(lambda: run_cli(parser, lambda: _run(args), setup), _interrupted)


def _interrupted() -> int:
    print("evaluate.py: interrupted; the same command goes on where it was", file=sys.stderr)
    return 130


def _run(args: argparse.Namespace) -> int:
    from model.evaluation.grid import chosen_variants
    from model.evaluation.result_cache import ResultCache
    from model.evaluation.tasks import Plan, tasks_of

    plan = Plan(tuple(chosen_variants(args)), args.after, not args.no_pictures)
    tasks = tasks_of(args.traces)
    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows, failed = _evaluated(args, tasks, plan, ResultCache(folder, plan))
        if rows:
            _write(folder, rows)
    except OSError as error:
        place = error.filename or folder
        raise UsageError(f"{place}: {error.strerror or error}; what is done is kept") from None
    if not rows:
        raise UsageError("no trace could be evaluated")
    return 2 if failed else 0


def _evaluated(
    args: argparse.Namespace, tasks: Sequence[Task], plan: Plan, kept: ResultCache
) -> tuple[list[Row], bool]:
    """The rows of every trace, in the order of the traces, and whether one had none."""
    from model.cli.progress import ProgressBar
    from model.evaluation.dask_cluster import on_cluster
    from model.evaluation.workers import in_processes

    found = {task: rows for task in tasks if (rows := kept.rows(task)) is not None}
    if found:
        print(f"evaluate.py: {len(found)} of {len(tasks)} traces were done already", file=sys.stderr)
    # The largest first: then none is left that all but one worker wait for.
    left = sorted((task for task in tasks if task not in found), key=lambda task: task.stamp, reverse=True)
    outcomes = in_processes(left, plan, args.jobs) if args.dask is None else on_cluster(left, plan, args.dask)
    complaints = []
    try:
        with ProgressBar().counted("evaluating", len(left)) as advance:
            for task, outcome in outcomes if left else ():
                if outcome.error:
                    complaints.append(outcome.error)
                else:
                    kept.keep(task, outcome)
                    found[task] = outcome.rows
                advance()
    finally:
        for line in sorted(complaints):
            print(f"evaluate.py: {line}", file=sys.stderr)
    return [row for task in tasks for row in found.get(task, ())], bool(complaints)


def _write(folder: Path, rows: Sequence[Row]) -> None:
    from model.common.atomic_files import staged
    from model.evaluation.figures import pareto_figure
    from model.evaluation.grid import Pooled, Row, pooled, table_csv
    from model.evaluation.tables import print_pooled
    from model.replay.figures import png

    together = pooled(rows)
    with staged() as files:
        files.write(folder / "results.csv", table_csv(rows, Row).encode())
        files.write(folder / "pooled.csv", table_csv(together, Pooled).encode())
        files.write(folder / "pareto.png", png(pareto_figure(together)))
    print_pooled(together)


if __name__ == "__main__":
    sys.exit(main())
