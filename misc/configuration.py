#!/usr/bin/env python3
"""Generates the commented example ``dotenv`` and ``docs/configuration.md`` from the settings in the code.

Without an option it says which of the two differ from the code, exit code 1 if one does.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model.cli.parser import Parser
from model.commands.configuration import render_dotenv, render_page


def main(argv: list[str] | None = None) -> int:
    """Write or compare the files; the exit code."""
    parser = Parser(prog="configuration.py", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the two files")
    args = parser.parse_args(argv)
    files = {ROOT / "dotenv": render_dotenv(), ROOT / "docs" / "configuration.md": render_page()}
    different = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in different:
        if args.write:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files[path])
        print(f"{path.relative_to(ROOT)} {'written' if args.write else 'differs from the settings'}")
    return 1 if different and not args.write else 0


if __name__ == "__main__":
    sys.exit(main())
