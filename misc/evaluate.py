#!/usr/bin/env python3
"""Compares strategies, with several values of their parameters, on many traces.

Writes results.csv (a row per trace, variant and resource), pooled.csv (all traces together), pareto.png (violated
slices against published free that was really free) and, where asked for, pictures of every trace. A slice is violated
when its usage, the 99th percentile of its samples, exceeds what was published as free before it. After an interruption
the same command continues with the traces that are left.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.cli.main import require_libraries, run_cli, run_interruptible
from model.cli.parser import Parser, list_of, name_in, number, whole_number

with require_libraries("offline"):
    from model.cli.model_options import risk_fault
    from model.common.errors import UsageError
    from model.evaluation.grid import variants
    from model.oversubscriptioncomputation import STRATEGIES
    from model.stability import STABILITY_DETECTORS


def _users_of(parameter: str) -> str:
    """The strategies that a parameter changes."""
    return ", ".join(name for name, strategy in STRATEGIES.items() if parameter in strategy.parameters)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="evaluate.py", description=__doc__, epilog=_epilog())
    add = parser.add_argument
    add("traces", nargs="+", metavar="TRACE|FOLDER", help="JSON traces, or folders of them")
    add("-o", "--output", required=True, metavar="FOLDER", help="folder of the tables and pictures")
    add(
        *("-s", "--strategy"),
        type=list_of(name_in((*STRATEGIES, "all"))),
        default=["all"],
        metavar="NAME[,NAME...]|all",
        help="strategies to evaluate (default: all)",
    )
    add(
        "--percentile",
        type=list_of(number(0, 100)),
        default=[90.0],
        metavar="PCT[,PCT...]",
        help=f"percentile of {_users_of('percentile')} (default: 90)",
    )
    add(
        "--aggreg",
        type=list_of(whole_number(1)),
        default=[1],
        metavar="N[,N...]",
        help=f"average N successive samples; for {_users_of('aggregation')} (default: 1)",
    )
    add(
        "--risk",
        type=list_of(number(0, 1)),
        default=[0.05],
        metavar="SHARE[,SHARE...]",
        help=f"target risk of {_users_of('risk')}; of every strategy with --guards (default: 0.05)",
    )
    add("--guards", action="store_true", help="lower what is published by guards, as the estimator does")
    add(
        "--stability",
        type=list_of(name_in(STABILITY_DETECTORS)),
        default=["mean"],
        metavar="NAME[,NAME...]",
        help=f"stability detector of {_users_of('stability')}: {', '.join(STABILITY_DETECTORS)} (default: mean)",
    )
    add(
        "--after",
        type=whole_number(0),
        default=10,
        metavar="N",
        help="number of slices at the start of each trace that are not scored (default: 10)",
    )
    add("-j", "--jobs", type=whole_number(1), metavar="N", help="worker processes (default: one per core)")
    add(
        "--dask",
        metavar="ADDRESS",
        help="evaluate on this Dask cluster, such as tcp://master:8786; its workers need the traces under the same "
        "paths",
    )
    add(
        "--pictures",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="draw each trace, which takes longer than to evaluate it (default: only tables and pareto.png)",
    )
    return parser


def _epilog() -> str:
    summaries = {
        "strategies": {name: strategy.summary for name, strategy in STRATEGIES.items()},
        "stability detectors": {name: detector.summary for name, detector in STABILITY_DETECTORS.items()},
    }
    return "\n\n".join(
        "\n".join([f"{title}:", *(f"  {name:12} {summary}" for name, summary in entries.items())])
        for title, entries in summaries.items()
    )


def main(argv: list[str] | None = None) -> int:
    """Evaluate; the exit code, 2 when a trace could not be evaluated."""
    parser = build_parser()
    args = parser.parse_args(argv)
    setup = "offline" if args.dask is None else "live"
    return run_interruptible(lambda: run_cli(parser, lambda: _run(args), setup), _interrupted)


def _run(args: argparse.Namespace) -> int:
    from model.evaluation.command import EvaluationOptions, run_evaluation

    strategies = list(STRATEGIES) if "all" in args.strategy else args.strategy
    for risk in args.risk:
        if fault := risk_fault(risk, tuple(strategies)):
            raise UsageError(f"--risk: {fault}")
    values = {
        "percentile": args.percentile,
        "aggregation": args.aggreg,
        "risk": args.risk,
        "stability": args.stability,
    }
    return run_evaluation(
        EvaluationOptions(
            traces=tuple(args.traces),
            output=Path(args.output),
            variants=tuple(variants(strategies, values, guards=args.guards)),
            after=args.after,
            jobs=args.jobs,
            dask=args.dask,
            pictures=args.pictures,
        )
    )


def _interrupted() -> int:
    print("evaluate.py: interrupted; run the same command to continue", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
