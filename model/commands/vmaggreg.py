"""Scrapes the Prometheus endpoint of every worker node and writes node and VM metrics into the store.

Settings come from the environment and from .env in the working directory; the file dotenv explains each of them.
"""

from __future__ import annotations

from ..cli.main import run_cli
from ..cli.parser import Parser, add_debug_and_version

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
    add_debug_and_version(parser, "0: warnings and errors; 1: what is done, too")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the aggregator; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)

    def job() -> int:
        from ..aggregator import daemon as aggregation

        return aggregation.run(args)

    try:
        return run_cli(parser, job, "live")
    except KeyboardInterrupt:
        return 0
