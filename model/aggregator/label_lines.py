"""Reads lines with labels from pages in the Prometheus text format.

A regular expression reads lines of the usual form. The remaining lines go one by one through the parser of
prometheus-client. An invalid line does not affect the rest of the page.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Set

from .exposition import VALUE_PATTERN, Sample, UnusualLines
from .limits import PageLimits
from .line_layout import MOST_LINES, LineLayout, line_layout

#: Text of a label with its escapes: each character has one way to match, so that the time is linear. The numbers of
#: escapes and of labels limit the memory of the search.
_TEXT = rb'[^"\\\n]*(?:\\[^\n][^"\\\n]*){0,256}'

_LABELS = rb'\{((?:[a-zA-Z_][a-zA-Z0-9_]*="%b",?){0,64})\}' % _TEXT

_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="(%b)"' % _TEXT)

_ESCAPE = re.compile(r'\\([\\n"])')

#: The longest labels that are remembered from one page to the next.
_LONGEST_LABELS = 512


class LabelledMetrics:
    """Metrics to read from a page, and the patterns of their lines.

    Parameters
    ----------
    names : set of str

    Attributes
    ----------
    names : set of str
    encoded : sequence of bytes
    usual : re.Pattern
        Name, labels and value of a line of the usual form.
    starts : re.Pattern
        Start of any line of these metrics.
    """

    def __init__(self, names: Set[str]) -> None:
        self.names = names
        self.encoded = sorted(name.encode() for name in names)
        either = b"|".join(self.encoded)
        self.usual = re.compile(rb"^(%b)(?:%b)? (%b)$" % (either, _LABELS, VALUE_PATTERN), re.MULTILINE)
        self.starts = re.compile(rb"^(?:%b)\b" % either, re.MULTILINE)


class LabelLines:
    """Reads lines with labels from the pages of one node.

    Parameters
    ----------
    limits : PageLimits

    Attributes
    ----------
    bad_lines : int
        Lines of these metrics that could not be parsed so far.
    """

    def __init__(self, limits: PageLimits) -> None:
        self.bad_lines = 0
        self._limits = limits
        self._labels: dict[LabelledMetrics, dict[bytes, Mapping[str, str]]] = {}
        self._layouts: dict[LabelledMetrics, LineLayout | None] = {}

    def samples(
        self, page: bytes, metrics: LabelledMetrics, unusual_lines: UnusualLines | None = None
    ) -> Iterator[Sample]:
        """The samples of some metrics; NaN where a value is invalid or not finite.

        Parameters
        ----------
        page : bytes
            Whole lines.
        metrics : LabelledMetrics
        unusual_lines : UnusualLines, optional
            Parser of lines that the regular expression does not match, with what is left of its limits.

        Raises
        ------
        LimitError
        """
        self._limits.check_series(page, metrics.encoded)
        layout = self._layouts.get(metrics)
        values = None if layout is None else layout.values(page, metrics.encoded)
        if layout is not None and values is not None:
            yield from zip(layout.names, layout.labels, values, strict=True)
            return
        self._layouts[metrics] = None
        # The next page has the same labels.
        known = self._labels.get(metrics, {})
        labels_now = self._labels[metrics] = {}
        names_read: list[str] = []
        labels_read: list[Mapping[str, str]] = []
        matches = metrics.usual.findall(page)
        for name, labels, text in matches:
            pairs = known.get(labels)
            if pairs is None:
                try:
                    pairs = _parse_labels(labels)
                except ValueError:
                    self.bad_lines += 1
                    continue
            if len(labels_now) < MOST_LINES and len(labels) <= _LONGEST_LABELS:
                labels_now[labels] = pairs
            try:
                value = float(text)
            except ValueError:
                self.bad_lines += 1
                value = math.nan
            names_read.append(sys.intern(name.decode()))
            labels_read.append(pairs)
            yield names_read[-1], pairs, value if math.isfinite(value) else math.nan
        if len(matches) < len(metrics.starts.findall(page)):
            yield from self._unusual_samples(page, metrics, unusual_lines or UnusualLines())
        elif len(names_read) == len(matches):
            self._layouts[metrics] = line_layout(page, metrics.encoded, names_read, labels_read)

    def _unusual_samples(self, page: bytes, metrics: LabelledMetrics, unusual_lines: UnusualLines) -> Iterator[Sample]:
        """The samples of lines that the regular expression does not match."""
        for match in metrics.starts.finditer(page):
            line = page[match.start() : page.find(b"\n", match.start())]
            if metrics.usual.match(line):
                continue
            samples = [sample for sample in unusual_lines.parse(line) if sample[0] in metrics.names]
            self.bad_lines += not samples
            for name, labels, value in samples:
                yield name, labels, value if math.isfinite(value) else math.nan


def _parse_labels(labels: bytes) -> dict[str, str]:
    """Names and texts of the labels of a line; raises ValueError when they are not UTF-8."""
    # Names and most texts are those of other lines, too.
    intern = sys.intern
    pairs = {intern(key.decode()): intern(text.decode("utf-8")) for key, text in _LABEL.findall(labels)}
    if b"\\" in labels:
        return {key: _ESCAPE.sub(_unescape, text) for key, text in pairs.items()}
    return pairs


def _unescape(match: re.Match[str]) -> str:
    return "\n" if match[1] == "n" else match[1]
