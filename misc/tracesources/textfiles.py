"""Lines and numbers of CSV files, plain or gzipped; errors name the place."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from misc.tracesources.grid import ConversionError

#: The largest number that the reader of traces accepts.
LARGEST = 1e15


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Iterate over the non-blank lines of a plain or gzip file, with their numbers.

    Raises
    ------
    ConversionError
    """
    try:
        with path.open("rb") as plain:
            packed = plain.peek(2)[:2] == b"\x1f\x8b"
            for line_number, line in enumerate(gzip.GzipFile(fileobj=plain) if packed else plain, 1):
                text = line.rstrip(b"\r\n")
                if line_number == 1:
                    text = text.removeprefix(b"\xef\xbb\xbf")
                    if text.startswith(b"version https://git-lfs"):
                        raise ConversionError(f"{path}: a Git LFS pointer, not the data; `git lfs pull` fetches it")
                if text.strip():
                    yield line_number, text
    except (OSError, EOFError, zlib.error) as error:
        raise ConversionError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a file: parses numbers; errors name the place."""

    path: Path
    titles: Sequence[str]

    def place(self, line_number: int, column: int) -> str:
        """The place of a field, for messages."""
        return f"{self.path}, line {line_number}, column {column + 1} ({self.titles[column].strip()})"

    def numbers(self, line_number: int, fields: Sequence[bytes], columns: Sequence[int]) -> list[float]:
        """Parse fields of a line as numbers.

        Raises
        ------
        ConversionError
        """
        try:
            numbers = [float(fields[column]) for column in columns]
            if all(0.0 <= value <= LARGEST for value in numbers):
                return numbers
        except ValueError:
            pass
        return [
            parsed_number(fields[column].decode("ascii", "backslashreplace"), self.place(line_number, column))
            for column in columns
        ]


def parsed_number(text: str, place: str) -> float:
    """Parse a number from 0 to ``LARGEST``; ``place`` names it in errors."""
    try:
        value = float(text)
    except ValueError:
        raise ConversionError(f"{place}: {text.strip()[:40]!r} is not a number") from None
    if not 0.0 <= value <= LARGEST:
        raise ConversionError(f"{place}: {text.strip()[:40]} is not from 0 to {LARGEST:g}")
    return value
