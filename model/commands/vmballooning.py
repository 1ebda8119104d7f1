"""Reclaims guest memory that is resident but unused, through libvirt.

A guest is squeezed step by step to a little more than it uses and restored at once. The pages that it released stay
free on the host until the guest uses them again. Settings come from the environment and from .env in the working
directory; the file dotenv explains each of them. SIGHUP restores all guests and restarts with the current settings.
"""

from __future__ import annotations

import argparse
import signal

from ..cli.main import run_cli
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
    # Until the daemon installs its handlers, Ctrl-C ends the process like SIGTERM does. Python's own handler raises
    # KeyboardInterrupt, which is lost when it arrives in a callback of an import.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    parser = build_parser()
    args = parser.parse_args(argv)
    _refuse_conflicts(parser, args)

    def job() -> int:
        from ..ballooning.daemon import BallooningOptions, run

        return run(
            BallooningOptions(
                dry_run=args.dry_run,
                once=args.once,
                debug=args.debug,
                json=args.json,
                check_config=args.check_config,
                check=args.check,
            )
        )

    return run_cli(parser, job)


def _refuse_conflicts(parser: Parser, args: argparse.Namespace) -> None:
    modes = [f"--{name}" for name in ("check-config", "check") if getattr(args, name.replace("-", "_"))]
    if len(modes) > 1:
        parser.error(f"{modes[0]} and {modes[1]} exclude each other")
    if modes and (args.dry_run or args.once):
        parser.error(f"{modes[0]} excludes --dry-run and --once")
    if args.json and not (args.check or args.dry_run):
        parser.error("--json needs --check or --dry-run")
