"""What all command lines have in common: one line and exit code 2 for a mistake."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, NoReturn

from .. import __version__


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and says a mistake in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong on stderr, and leave with exit code 2."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def add_debug_and_version(parser: Parser, levels: str) -> None:
    """The options that every daemon has."""
    parser.add_argument(
        *("-d", "--debug"), type=whole_number(0), default=0, metavar="LEVEL", help=f"{levels} (default: 0)"
    )
    parser.add_argument("--version", action="version", version=f"ScroogeVM {__version__}")


def whole_number(least: int) -> Callable[[str], int]:
    """An argument type: a whole number of at least ``least``."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return number

    return parse


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """An argument type: a finite number from ``least`` to ``most``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or math.isinf(value):
            limits = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {limits}")
        return value

    return parse


def timestamp(text: str) -> float:
    """An argument type: a moment, Unix seconds or ISO 8601 (UTC, if it does not say otherwise)."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            # Python 3.10 does not know Z.
            parsed = datetime.fromisoformat(re.sub(r"[Zz]$", "+00:00", text.strip()))
            seconds = (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()
        except (ValueError, OverflowError):
            seconds = math.nan
    if not 0 <= seconds < 1e11:
        raise argparse.ArgumentTypeError(f"{text!r} is neither Unix seconds nor a time such as 2026-01-31T12:00Z")
    return seconds
