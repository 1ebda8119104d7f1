"""The Prometheus text format: lines of unusual form and limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families

#: A number as both float() and the format know it: no underscores, no white space, ASCII.
VALUE_PATTERN = rb"[!-^`-~]+"

KIB = 1024.0

NS_PER_S = 1e9


class PageError(ValueError):
    """A page that tells nothing: a missed scrape. The message is one line."""


_LONGEST_LINE = 4096

MOST_UNUSUAL_LINES = 5000

Sample = tuple[str, Mapping[str, str], float]


def parse_line(line: bytes) -> Iterator[Sample]:
    """The sample on a line, if there is one."""
    if len(line) > _LONGEST_LINE:
        return
    try:
        for family in text_string_to_metric_families(line.decode("utf-8") + "\n"):
            for sample in family.samples:
                yield sample.name, sample.labels, float(sample.value)
    except (ValueError, UnicodeDecodeError, IndexError, KeyError, TypeError):
        return
