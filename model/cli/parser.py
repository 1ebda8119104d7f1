"""The argument parser of all command lines: one line and exit code 2 for a mistake."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Collection
from datetime import datetime, timezone
from typing import Any, NoReturn

from .. import __version__


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and reports a mistake in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr and exit with code 2."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print the text of ``-h`` or ``--version``; exit with code 1 when it cannot be written."""
        try:
            print(message, end="", file=file, flush=True)
        except OSError as error:
            discard_output()
            print(f"{self.prog}: standard output: {error.strerror}", file=sys.stderr)
            sys.exit(1)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, but report an unknown option before arguments that are missing."""
        words = list(sys.argv[1:] if args is None else args)
        # What follows the name of a subcommand is checked by its own parser.
        commands = {name for action in self._actions if isinstance(action.choices, dict) for name in action.choices}
        for word in itertools.takewhile(lambda word: word != "--" and word not in commands, words):
            option = word.partition("=")[0]
            if option.startswith("--") and option not in self._option_string_actions:
                similar = difflib.get_close_matches(option, self._option_string_actions, 1)
                self.error(f"unrecognized option {option}{f'; did you mean {similar[0]}?' if similar else ''}")
        return super().parse_known_args(words, namespace)


def discard_output() -> None:
    """Drop what waits for standard output, which cannot be written, so that the interpreter does not try again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add_debug_and_version(parser: Parser, levels: str) -> None:
    """Add the options that every daemon has."""
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


def list_of(value_type: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """An argument type: values separated by commas, duplicates dropped."""

    def parse(text: str) -> list[Any]:
        return list(dict.fromkeys(value_type(word.strip()) for word in text.split(",")))

    return parse


def name_in(names: Collection[str]) -> Callable[[str], str]:
    """An argument type: one of several names."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

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
    """An argument type: a time, Unix seconds or ISO 8601 (UTC unless it has an offset)."""
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
