"""Gives guest memory that is resident but not used back to the hosts, through libvirt.

A guest is squeezed step by step to a little more than it uses, and gets its memory back at once; what it gave up
stays free on the host until it is used. Settings come from the environment and from .env in the working directory;
the file dotenv explains each of them.
"""

from __future__ import annotations

from ..cli.main import run_cli
from ..cli.parser import Parser, add_debug_and_version

EPILOG = """\
example:
  vmballooning.py --dry-run --once      say what would be done with each VM, and why
"""


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(prog="vmballooning.py", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--dry-run", action="store_true", help="print the plan, a line per VM, and do nothing")
    add("--once", action="store_true", help="make one plan, end its sessions, and leave")
    add_debug_and_version(parser, "0: warnings and errors; 1: a line per action, too")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the ballooning daemon; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)

    def job() -> int:
        from ..ballooning import daemon as ballooning

        return ballooning.run(args)

    try:
        return run_cli(parser, job)
    except KeyboardInterrupt:
        return 0
