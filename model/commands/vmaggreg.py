"""Scrapes the Prometheus endpoints of all worker nodes and writes the metrics of nodes and VMs to the store.

Settings are environment variables, or lines of .env in the working directory; the file dotenv explains each of them.
"""

from __future__ import annotations

from ..cli.main import run_cli, run_interruptible
from ..cli.parser import Parser, add_debug_and_version

EPILOG = """\
SIGHUP reloads the settings.

example:
  AGGREG_STUB_LIST='[["http://worker1:9100/metrics", "vmprobe"]]' STORE_PATH=store.sqlite vmaggreg.py --once
"""


def build_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser(prog="vmaggreg.py", description=__doc__, epilog=EPILOG)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="scrape each node once, write the samples, and exit")
    mode.add_argument(
        "--check",
        action="store_true",
        help="scrape each target once, check the store, print the results; write nothing",
    )
    mode.add_argument(
        "--check-config", action="store_true", help="validate the settings only; use neither network nor store"
    )
    parser.add_argument("--json", action="store_true", help="with --check: print the results as JSON")
    add_debug_and_version(parser, "0: warnings and errors; 1: also informational records")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the aggregator; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.json and not args.check:
        parser.error("--json requires --check")

    def job() -> int:
        from . import configuration

        if args.check_config:
            from ..aggregator.settings import aggregator_settings
            from ..common.environment import environment

            return configuration.check_settings(lambda: aggregator_settings(environment()))
        from ..aggregator.daemon import AggregatorOptions, run

        return run(AggregatorOptions(once=args.once, check=args.check, debug=args.debug, json=args.json))

    return run_interruptible(lambda: run_cli(parser, job, "live"), lambda: 1 if args.check else 0)
