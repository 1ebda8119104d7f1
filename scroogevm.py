#!/usr/bin/env python3
"""Computes how much of a node's CPU and memory is really free.

Offline it replays a JSON trace through the strategies and compares what each of them would have promised.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

from model import __version__
from model.adapters.commandline import Parser, UsageError, number, whole_number

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

example:
  scroogevm.py --load=decreasing-workload.json --strategy=all --output=results --report
"""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="scroogevm.py", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("-s", "--strategy", default="all", metavar="NAME[,NAME...]|all", help="strategies to compute (default: all)")
    add(
        *("-d", "--debug"),
        type=whole_number(0),
        default=0,
        metavar="LEVEL",
        help="0: warnings only; 1: a line per scope and strategy; 2: pictures of the tiers too (default: 0)",
    )
    add("-l", "--load", metavar="TRACE.json", help="replay this trace")
    add(
        *("-o", "--output"),
        metavar="FOLDER",
        help="write dump-<strategy>.json and summary.csv there, in place of older ones; without it a single "
        "strategy's dump goes to the working directory, and several strategies are only compared",
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
        help="list of node URLs; with --load one, the name of the node whose trace it is",
    )
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
        help="in which share of the slices a promise may be broken; decides the order of the table (default: 0.05)",
    )
    add("--report", action="store_true", help="write report.html beside the dumps; needs --output")
    add("--version", action="version", version=f"ScroogeVM {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.load is None:
        parser.error("nothing to do: name a trace with --load=TRACE.json (-h shows all)")
    if args.report and args.output is None:
        parser.error("--report needs --output=FOLDER")
    logging.basicConfig(level=logging.INFO if args.debug else logging.WARNING, format="%(levelname)s %(message)s")
    interrupted = threading.Event()

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        interrupted.set()
        raise KeyboardInterrupt

    # On SIGTERM as on Ctrl-C, what is half done is taken back.
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    # No matrix is multiplied here, and a thread per core for that would cost as much as a small replay.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        # Not before the command line is known to be good: -h and a mistyped flag answer at once.
        from model.adapters import offline

        return offline.run(args)
    except UsageError as error:
        parser.error(str(error))
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is not installed here; misc/setup.sh offline makes .venv/bin/python ready")
    except BrokenPipeError:
        # The reader of our output has left; without this the interpreter complains at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, Exception):
        # A compiled library that is interrupted while it is loaded makes another error of it.
        if not interrupted.is_set():
            raise
        print("scroogevm.py: interrupted, nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
