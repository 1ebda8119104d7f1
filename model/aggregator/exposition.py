"""The Prometheus text format: units of the exporters, limits, and a tolerant parser of single lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families

#: A number in a form that float() and the format have in common: ASCII without underscores and white space.
VALUE_PATTERN = rb"[!-^`-~]+"

#: Bytes of a KiB, the unit of memory of vmprobe.
KIB = 1024.0

#: Bytes of a MB, and KiB of a MB.
MB = 2.0**20
KIB_PER_MB = MB / KIB

#: Nanoseconds of a second; vmprobe counts CPU time in nanoseconds.
NS_PER_S = 1e9
NS_PER_MS = NS_PER_S / 1e3

#: Longer lines are skipped; a page may be made to be slow to parse.
_LONGEST_LINE = 4096

#: Lines of a page that are parsed one by one, because regular expressions do not match them, and their total length;
#: further ones are skipped. The reference parser takes 0.1 s for as many.
MOST_UNUSUAL_LINES = 1000
_MOST_UNUSUAL_BYTES = 2**18

#: Name, labels and value.
Sample = tuple[str, Mapping[str, str], float]


class PageError(ValueError):
    """A page that cannot be used; the scrape has failed. The message is one line."""

    reason = "page"


class LimitError(PageError):
    """A page that holds more than one node may have."""

    reason = "limit"


def require_complete_lines(page: bytes) -> None:
    """Refuse a page whose last line has no end.

    Raises
    ------
    PageError
    """
    if not page.endswith(b"\n"):
        raise PageError("the page is truncated in the middle of a line")


class UnusualLines:
    """Parses lines of one page, up to a number and a total length.

    The sample of a further line is missing, as if it was invalid.
    """

    def __init__(self) -> None:
        self._lines = MOST_UNUSUAL_LINES
        self._bytes = _MOST_UNUSUAL_BYTES

    def parse(self, line: bytes) -> list[Sample]:
        """The samples of a line; none when it is invalid or too much was parsed before."""
        self._lines -= 1
        self._bytes -= len(line)
        return list(parse_line(line)) if self._lines >= 0 and self._bytes >= 0 else []


def parse_line(line: bytes) -> Iterator[Sample]:
    """The sample of a line, if it is valid, by the reference parser of the format."""
    if len(line) > _LONGEST_LINE:
        return
    try:
        for family in text_string_to_metric_families(line.decode("utf-8") + "\n"):
            for sample in family.samples:
                yield sample.name, sample.labels, float(sample.value)
    except (ValueError, UnicodeDecodeError, IndexError, KeyError, TypeError):
        return
