"""Stateless parser of a page of vmprobe.

A regular expression reads lines of the usual form. The remaining lines go one by one through the parser of
prometheus-client, the reference for the format. An invalid line does not affect the rest of the page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .exposition import VALUE_PATTERN, UnusualLines
from .vmprobe_names import LONGEST_NAME


@dataclass(slots=True)
class ParsedPage:
    """Metrics of a page, by their names without the prefix.

    Attributes
    ----------
    values : dict of name to value
        In the order of the page; values may be NaN or infinite.
    unreadable : set of name
        Metrics on the page that have no valid value, or several values.
    bad_lines : int
        Lines that cannot be parsed.
    """

    values: dict[bytes, float] = field(default_factory=dict)
    unreadable: set[bytes] = field(default_factory=set)
    bad_lines: int = 0

    def add(self, name: bytes, value: float) -> None:
        """Add a metric; one that is on the page twice is unreadable, whatever its values.

        The probe omits some characters of the names of domains, so that two domains may have one name. And a line
        with labels may have the name of a plain one.
        """
        if name in self.values:
            self.unreadable.add(name)
        self.values[name] = value


def parse_page(page: bytes, prefix: str) -> ParsedPage:
    """The metrics of a page whose names start with ``<prefix>_``."""
    start = f"{prefix}_".encode()
    # A pattern that begins with a constant text is searched five times as fast as one that begins with "^".
    page, line_start = b"\n" + page, b"\n" + start
    escaped = re.escape(line_start)
    usual = re.findall(rb"%b([a-zA-Z0-9_:]+) (%b)$" % (escaped, VALUE_PATTERN), page, flags=re.MULTILINE)
    parsed = ParsedPage()
    invalid = False
    for name, text in usual:
        try:
            value = float(text)
        except ValueError:
            invalid = True
            continue
        parsed.add(name, value)
    if invalid or page.count(line_start) > len(usual):
        _parse_unusual_lines(parsed, page, start)
    for name in parsed.unreadable:
        parsed.values.pop(name, None)
    return parsed


def _parse_unusual_lines(parsed: ParsedPage, page: bytes, start: bytes) -> None:
    """Parse lines with labels, timestamps or several blanks, and count invalid lines."""
    usual = re.compile(rb"%b[a-zA-Z0-9_:]+ [-+.0-9eEa-zA-Z]+\Z" % re.escape(start))
    prefix = start.decode()
    unusual_lines = UnusualLines()
    for match in re.finditer(rb"\n%b.*" % re.escape(start), page):
        line = match[0][1:]
        if usual.match(line) and _ends_in_number(line):
            continue
        samples = unusual_lines.parse(line)
        for name, _, value in samples:
            parsed.add(name.removeprefix(prefix).encode(), value)
        if not samples:
            parsed.bad_lines += 1
            if name_match := re.match(rb"[a-zA-Z0-9_:]{1,%d}" % LONGEST_NAME, line[len(start) :]):
                parsed.unreadable.add(name_match[0])


def _ends_in_number(line: bytes) -> bool:
    try:
        float(line.rpartition(b" ")[2])
    except ValueError:
        return False
    return True
