"""Lines and numbers of CSV files, plain or gzipped, with the place of every fault."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from misc.tracesources.grid import ConversionError

#: What the reader of traces accepts at most.
LARGEST = 1e15


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something and their numbers, of a plain or a gzip file.

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
    """The columns of a file: reads their numbers, and names the place of what is none."""

    path: Path
    titles: Sequence[str]

    def place(self, line_number: int, column: int) -> str:
        """Where a field stands."""
        return f"{self.path}, line {line_number}, column {column + 1} ({self.titles[column].strip()})"

    def numbers(self, line_number: int, fields: Sequence[bytes], columns: Sequence[int]) -> list[float]:
        """Some fields of a line as numbers.

        Raises
        ------
        ConversionError
        """
        try:
            numbers = [float(fields[column]) for column in columns]
            if all(0.0 <= found <= LARGEST for found in numbers):
                return numbers
        except ValueError:
            pass
        return [
            parsed_number(fields[column].decode("ascii", "backslashreplace"), self.place(line_number, column))
            for column in columns
        ]


def parsed_number(text: str, place: str) -> float:
    """A number of a file: not negative, and not beyond any machine."""
    try:
        found = float(text)
    except ValueError:
        raise ConversionError(f"{place}: {text.strip()[:40]!r} is no number") from None
    if not 0.0 <= found <= LARGEST:
        raise ConversionError(f"{place}: {text.strip()[:40]} makes no sense")
    return found
