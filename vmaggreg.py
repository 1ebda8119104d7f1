#!/usr/bin/env python3
"""Scrapes the Prometheus endpoint of every worker node and writes node and VM metrics into the store.

Settings come from the environment and from .env in the working directory; the file dotenv explains each of them.
"""

from __future__ import annotations

import os
import sys

from model import __version__
from model.adapters.commandline import Parser, UsageError, whole_number

EPILOG = """\
example:
  AGGREG_STUB_LIST='[["http://worker1:9100/metrics", "vmprobe"]]' STORE_PATH=store.sqlite vmaggreg.py --once
"""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="vmaggreg.py", description=__doc__, epilog=EPILOG)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--once", action="store_true", help="scrape every node one time, write, and leave")
    what.add_argument(
        "--check", action="store_true", help="validate the settings, ask every target and the store, tell what answered"
    )
    parser.add_argument(
        *("-d", "--debug"),
        type=whole_number(0),
        default=0,
        metavar="LEVEL",
        help="0: warnings and errors; 1: what is done, too (default: 0)",
    )
    parser.add_argument("--version", action="version", version=f"ScroogeVM {__version__}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the aggregator; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    # No matrix is multiplied here: no thread is kept for it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from model.adapters import aggregation

        return aggregation.run(args)
    except UsageError as error:
        for line in str(error).splitlines():
            print(f"{parser.prog}: {line}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is not installed here; misc/setup.sh all makes .venv/bin/python ready")
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
