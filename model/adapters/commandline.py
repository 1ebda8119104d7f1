"""What all command lines have in common: one line and exit code 2 for a mistake."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from model import __version__


class UsageError(Exception):
    """The command line, or what it names, can't be used; the message has a line for each mistake."""


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and says a mistake in one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong on stderr, and leave with exit code 2."""
        print(f"{self.prog}: {message}", file=sys.stderr)
        sys.exit(2)


def carry_out(parser: Parser, job: Callable[[], int], setup: str = "all") -> int:
    """Do a program's job; its exit code.

    Parameters
    ----------
    job : callable
        Does it; imports what it needs first, so that ``-h`` need not wait for that.
    setup : str
        What ``misc/setup.sh`` has to make ready for it.
    """
    # No matrix is multiplied anywhere, and a thread per core for that would cost as much as a small replay.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        return job()
    except UsageError as error:
        for line in str(error).splitlines():
            print(f"{parser.prog}: {line}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        parser.error(_not_installed(error, setup))
    except PermissionError as error:
        # Wherever it is met, it is the operator's to mend, and the name says where.
        if error.filename is None:
            raise
        parser.error(f"{error.filename}: {error.strerror}")


@contextlib.contextmanager
def libraries(setup: str) -> Iterator[None]:
    """Around the imports at the head of a program: what is not installed is one line and exit code 2, too."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(f"{Path(sys.argv[0]).name}: {_not_installed(error, setup)}", file=sys.stderr)
        sys.exit(2)


def _not_installed(error: ModuleNotFoundError, setup: str) -> str:
    return f"{error.name} is not installed here; misc/setup.sh {setup} makes .venv/bin/python ready"


def interruptible(job: Callable[[], int], when_interrupted: Callable[[], int]) -> int:
    """Do a job that Ctrl-C and SIGTERM break off, with all that it has to take back; its exit code.

    Parameters
    ----------
    when_interrupted : callable
        Says so; answers with the exit code then.
    """
    interrupted = threading.Event()

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        interrupted.set()
        raise KeyboardInterrupt

    def not_raised(unraisable: sys.UnraisableHookArgs) -> None:
        if interrupted.is_set() and isinstance(unraisable.exc_value, KeyboardInterrupt):
            # It came while an object was taken apart, where an error ends nothing: once more, a moment later.
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = not_raised

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return job()
    except BrokenPipeError:
        # The reader of our output has left; without this the interpreter complains at its own end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, Exception):
        # A compiled library that is interrupted while it is loaded makes another error of it.
        if not interrupted.is_set():
            raise
        return when_interrupted()


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


def moment(text: str) -> float:
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
