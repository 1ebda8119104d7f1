"""Reclaims guest memory that is resident but unused, through libvirt.

A guest is squeezed step by step to a little more than it uses and restored at once. The pages that it released stay
free on the host until the guest uses them again. Settings come from the environment and from .env in the working
directory; the file dotenv explains each of them. SIGHUP restores all guests and restarts with the current settings.
"""

from __future__ import annotations

import argparse

from ..cli.main import run_cli, run_interruptible
from ..cli.parser import Parser, add_debug_and_version

EPILOG = """\
examples:
  vmballooning.py --check               query the store and each host once
  vmballooning.py --dry-run --once      print what would be done with each VM, and why
"""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="vmballooning.py", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--dry-run", action="store_true", help="print the plan, a line per VM, and change nothing")
    add("--once", action="store_true", help="make one plan, close its sessions, and exit")
    add("--check", action="store_true", help="validate the settings, query the store and each host once, and exit")
    add("--check-config", action="store_true", help="validate the settings without any other access, and exit")
    add("--json", action="store_true", help="with --check or --dry-run: print JSON")
    add_debug_and_version(parser, "0: warnings and errors; 1: a line per action as well")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    _refuse_conflicts(parser, args)

    def job() -> int:
        if args.check_config:
            return _check_config()
        from ..ballooning.daemon import BallooningOptions, run
        from . import configuration  # noqa: F401  # declares all settings: a key of another program is not misspelt

        return run(BallooningOptions(args.dry_run, args.once, args.debug, json=args.json, check=args.check))

    # Python's own handler of SIGINT raises an exception too, which is lost in a callback of an import. These handlers
    # apply until the daemon installs its own.
    return run_interruptible(lambda: run_cli(parser, job), lambda: 1 if args.check else 0)


def _check_config() -> int:
    from ..ballooning.settings import ballooning_settings
    from ..common.environment import environment
    from .configuration import check_settings

    return check_settings(lambda: ballooning_settings(environment()))


def _refuse_conflicts(parser: Parser, args: argparse.Namespace) -> None:
    modes = [f"--{name}" for name in ("check-config", "check") if getattr(args, name.replace("-", "_"))]
    if len(modes) > 1:
        parser.error(f"{modes[0]} and {modes[1]} exclude each other")
    if modes and (args.dry_run or args.once):
        parser.error(f"{modes[0]} excludes --dry-run and --once")
    if args.json and not (args.check or args.dry_run):
        parser.error("--json needs --check or --dry-run")
