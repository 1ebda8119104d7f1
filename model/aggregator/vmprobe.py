"""Prometheus pages to readings: vmprobe's names that encode everything, and exporters that use labels.

Lines of the usual form are read by a regular expression each; what it leaves over goes line by line through
the parser of prometheus-client, the reference for the format. So a bad line costs that line, and not the page.
"""

from __future__ import annotations

import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..samples import Scrape
from .exposition import MOST_UNUSUAL_LINES, VALUE_PATTERN, PageError, parse_line

# --- vmprobe ----------------------------------------------------------------------------------------

_SECTIONS = ("probe", "cpu", "memory", "perf", "sched", "stat")

_KNOWN = {
    "probe": {"epoch", "delay"},
    "cpu": {
        *("alloc", "cputime", "systemtime", "usertime", "total", "user", "kernel", "idle", "iowait"),
        *("freq", "minfreq", "maxfreq"),
    },
    "memory": {
        *("alloc", "available", "buffers", "cached", "diskcaches", "free", "hugetlb_pgfail", "hugetlbpgalloc"),
        *("last_update", "majorfault", "minorfault", "rss", "swapin", "swapout", "total", "unused", "usable"),
    },
    "sched": {"runtime", "waittime", "timeslices"},
    "stat": {"rss", "rsslim", "vsize", "minflt", "majflt", "cminflt", "cmajflt"},
}

_PERF = re.compile(r"[a-z0-9]+\Z")

#: Without these a page was cut off while the probe wrote it.
_NODE_NEEDS = ("probe_epoch", "cpu_total", "cpu_user", "cpu_kernel", "memory_total", "memory_available")

#: A domain that has none of these has just been started: libvirt does not tell of it yet.
_DOMAIN_SIGNS = {"cpu_alloc", "cpu_cputime", "memory_alloc"}

#: A longer name is nobody's, and a longer line is not worth what reading it costs: both may be sent to harm.
_LONGEST_NAME = 512

#: Years that a probe's clock may show, Unix milliseconds: 1970 to 2100.
_EPOCHS_MS = (0.0, 4.1e12)

#: So many names are remembered; a page that always shows new ones must not fill the memory.
_MOST_NAMES = 200_000


def split_name(name: str, domains: Mapping[str, object] = {}) -> tuple[str | None, str] | None:
    """Take a metric name of vmprobe apart, its prefix already off.

    Domain names may hold ``_`` and even the name of a section; the split is made where a known metric
    follows, or else behind a domain that is known from other lines.

    Returns
    -------
    (domain, metric) or None
        The domain is None for the node; None alone when the name is none of vmprobe's.

    Examples
    --------
    >>> split_name("global_cpu_user")
    (None, 'cpu_user')
    >>> split_name("domain_db_memory_cpu_alloc")
    ('db_memory', 'cpu_alloc')
    """
    kind, _, rest = name.partition("_")
    if kind == "global":
        section, _, metric = rest.partition("_")
        return (None, rest) if section in _SECTIONS and metric else None
    if kind != "domain":
        return None
    splits = [
        (rest[: found.start()], found[1], rest[found.end() + len(found[1]) + 2 :])
        # Looked ahead, not consumed: in cpu_cpu_alloc the same underscore ends one section and starts another.
        for found in re.finditer(rf"(?=_({'|'.join(_SECTIONS)})_)", rest)
        if found.start() > 0 and found.end() + len(found[1]) + 2 < len(rest)
    ]
    if not splits:
        return None
    # The longest name that makes sense: a domain may be called like a section, a metric hardly.
    splits.sort(key=lambda split: -len(split[0]))
    for domain, section, metric in splits:
        if metric in _KNOWN.get(section, ()) or (section == "perf" and _PERF.match(metric)):
            return domain, f"{section}_{metric}"
    for domain, section, metric in splits:
        if domain in domains:
            return domain, f"{section}_{metric}"
    domain, section, metric = splits[-1]
    return domain, f"{section}_{metric}"


@dataclass(frozen=True, slots=True)
class _Layout:
    """The names of a page, in its order, and which of them make up which machine.

    Attributes
    ----------
    first : bytes
        The first name, prefix included.
    ends : sequence of bytes
        What stands behind each value: the end of its line and the next name, behind the last one the end alone.
    groups : sequence of (domain, metrics, getter)
        The getter takes a machine's values from among those of the page.
    """

    first: bytes
    ends: Sequence[bytes]
    groups: Sequence[tuple[str | None, Sequence[str], Callable[[list[float]], tuple[float, ...]]]]


@dataclass(slots=True)
class VmprobePages:
    """Reads the pages of one vmprobe.

    Parameters
    ----------
    prefix : str
        Of all its metrics.

    Attributes
    ----------
    bad_lines : int
        Lines with the prefix that could not be read so far.
    """

    prefix: str
    bad_lines: int = 0
    _last: _Layout | None = None
    _places: dict[bytes, tuple[str | None, str] | None] = field(default_factory=dict)
    _names: frozenset[bytes] = frozenset()
    _optional: set[bytes] = field(default_factory=set)
    _refused_epoch_ms: float | None = None

    def read(self, page: bytes) -> Scrape:
        """What a page tells.

        Raises
        ------
        PageError
            When the page is empty, cut off, or not vmprobe's.
        """
        scrape = self._like_the_last(page)
        if scrape is not None:
            return scrape
        values, unreadable = self._values(page)
        if not values:
            raise PageError(f"no metric of prefix {self.prefix!r} on the page")
        self._refuse_what_is_cut_off(page, values, frozenset(values) | unreadable)
        node: dict[str, float] = {}
        domains: defaultdict[str, dict[str, float]] = defaultdict(dict)
        there: set[str] = set()
        for name in [*values, *unreadable]:
            place = self._place(name, domains)
            if place is None:
                continue
            domain, metric = place
            value = values.get(name, math.nan)
            if domain is not None and metric in _DOMAIN_SIGNS:
                there.add(domain)  # even when the figure itself makes no sense
            if math.isfinite(value):
                (node if domain is None else domains[domain])[metric] = value
        for need in _NODE_NEEDS:
            if need not in node:
                raise PageError(f"the page is cut off: it has no global_{need}")
        if not _EPOCHS_MS[0] < node["probe_epoch"] < _EPOCHS_MS[1]:
            raise PageError(f"the probe's clock says {node['probe_epoch']:g}, which is no time")
        self._last = self._layout(values) if not unreadable else None
        return Scrape(node["probe_epoch"], node, {domain: domains[domain] for domain in domains if domain in there})

    def _layout(self, values: Mapping[bytes, float]) -> _Layout | None:
        """What to expect of the next page: the names of this one, in its order."""
        names = [f"{self.prefix}_".encode() + name for name in values]
        machines: defaultdict[str | None, list[tuple[str, int]]] = defaultdict(list)
        for i, name in enumerate(values):
            place = self._places.get(name)
            if place is not None:
                machines[place[0]].append((place[1], i))
        if any(len(found) < 2 for found in machines.values()):
            return None  # a getter of one item answers with that item, and not with a tuple
        groups = [
            (domain, [metric for metric, _ in found], operator.itemgetter(*(i for _, i in found)))
            for domain, found in machines.items()
        ]
        return _Layout(names[0], [*(b"\n" + name for name in names[1:]), b"\n"], groups)

    def _like_the_last(self, page: bytes) -> Scrape | None:
        """Read a page that holds the names of the last one, in its order, and nothing else; a fifth of the time.

        A probe's own file is such a page as long as no VM comes or goes. None when this is not one.
        """
        last = self._last
        if last is None:
            return None
        # Cut at blanks, every piece but the first is a value, the end of its line and the next name: so it must be.
        first, *cells = page.split(b" ")
        texts = list(map(bytes.removesuffix, cells, last.ends))
        as_expected = (
            first == last.first and len(cells) == len(last.ends) and all(map(bytes.endswith, cells, last.ends))
        )
        if not as_expected or b"_" in b"".join(texts):
            return None
        try:
            values = list(map(float, texts))
        except ValueError:
            return None
        if not math.isfinite(sum(values)):
            return None
        node: dict[str, float] = {}
        domains: dict[str, dict[str, float]] = {}
        for domain, metrics, figures in last.groups:
            machine = dict(zip(metrics, figures(values), strict=True))
            if domain is None:
                node = machine
            elif not _DOMAIN_SIGNS.isdisjoint(machine):
                domains[domain] = machine
        if not _EPOCHS_MS[0] < node["probe_epoch"] < _EPOCHS_MS[1]:
            return None
        return Scrape(node["probe_epoch"], node, domains)

    def _place(self, name: bytes, domains: Mapping[str, object]) -> tuple[str | None, str] | None:
        places = self._places
        if name not in places:
            if len(places) >= _MOST_NAMES:
                places.clear()
            places[name] = split_name(name.decode("ascii"), domains) if len(name) <= _LONGEST_NAME else None
        return places[name]

    def _values(self, page: bytes) -> tuple[dict[bytes, float], set[bytes]]:
        """The figures by name, and the names of those that are there and can't be read; a name told twice is such."""
        prefix = re.escape(self.prefix.encode())
        usual = re.findall(rb"^%b_([a-zA-Z0-9_:]+) (%b)$" % (prefix, VALUE_PATTERN), page, flags=re.MULTILINE)
        values: dict[bytes, float] = {}
        unreadable: set[bytes] = set()
        unusual = 0
        for name, text in usual:
            try:
                value = float(text)
            except ValueError:
                unusual += 1
                continue
            if values.setdefault(name, value) != value:
                # Two domains whose names differ by what the probe leaves out of them: nobody knows whose it is.
                unreadable.add(name)
        mine = len(re.findall(rb"^%b_" % prefix, page, flags=re.MULTILINE))
        if unusual or mine > len(usual):
            self._add_unusual(values, unreadable, page)
        for name in unreadable:
            values.pop(name, None)
        return values, unreadable

    def _add_unusual(self, values: dict[bytes, float], unreadable: set[bytes], page: bytes) -> None:
        """Add what stands on lines with labels, time stamps or blanks, and count the bad ones."""
        start = f"{self.prefix}_".encode()
        usual = re.compile(rb"%b[a-zA-Z0-9_:]+ [-+.0-9eEa-zA-Z]+\Z" % re.escape(start))
        looked_at = 0
        for line in page.split(b"\n"):
            if not line.startswith(start) or (usual.match(line) and _is_number(line)):
                continue
            looked_at += 1
            found = list(parse_line(line)) if looked_at <= MOST_UNUSUAL_LINES else []
            for name, _, value in found:
                values[name.removeprefix(f"{self.prefix}_").encode()] = value
            if not found:
                self.bad_lines += 1
                if name_of := re.match(rb"[a-zA-Z0-9_:]{1,%d}" % _LONGEST_NAME, line[len(start) :]):
                    unreadable.add(name_of[0])

    def _refuse_what_is_cut_off(self, page: bytes, values: Mapping[bytes, float], names: frozenset[bytes]) -> None:
        """A probe truncates its file and then writes it: who reads in between gets a part.

        Raises
        ------
        PageError
            When the last line has no end, or when a machine that is still there lacks metrics that it had the
            last time. The next page of a later time is believed, and what it lacks is not missed again.
        """
        if not page.endswith(b"\n"):
            raise PageError("the page is cut off in the middle of a line")
        places = self._places
        left = {place[0] for name in names if (place := places.get(name)) is not None}
        gone = {
            name
            for name in self._names - names - self._optional
            if (place := places.get(name)) is not None and place[0] in left
        }
        epoch_ms = values.get(b"global_probe_epoch", 0.0)
        if gone and (self._refused_epoch_ms is None or epoch_ms <= self._refused_epoch_ms):
            if self._refused_epoch_ms is None:
                self._refused_epoch_ms = epoch_ms
            raise PageError(f"the page is cut off: {len(gone)} metrics of the last one are missing")
        if len(self._optional) > _MOST_NAMES:
            self._optional.clear()
        self._optional |= gone
        self._names, self._refused_epoch_ms = names, None


def _is_number(line: bytes) -> bool:
    try:
        float(line.rpartition(b" ")[2])
    except ValueError:
        return False
    return True
