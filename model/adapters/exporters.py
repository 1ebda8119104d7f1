"""Prometheus pages to readings: vmprobe's names that encode everything, and exporters that use labels.

Lines of the usual form are read by a regular expression each; what it leaves over goes line by line through
the parser of prometheus-client, the reference for the format. So a bad line costs that line, and not the page.
"""

from __future__ import annotations

import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from model.rates import Reading

#: A number as both float() and the format know it: no underscores, no white space, ASCII.
_VALUE = rb"[!-^`-~]+"
_KIB = 1024.0
_NS_PER_S = 1e9


class PageError(ValueError):
    """A page that tells nothing: a missed scrape. The message is one line."""


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
_LONGEST_LINE = 4096
_MOST_UNUSUAL_LINES = 5000
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

    def read(self, page: bytes) -> Reading:
        """What a page tells.

        Raises
        ------
        PageError
            When the page is empty, cut off, or not vmprobe's.
        """
        reading = self._like_the_last(page)
        if reading is not None:
            return reading
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
        return Reading(node["probe_epoch"], node, {domain: domains[domain] for domain in domains if domain in there})

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

    def _like_the_last(self, page: bytes) -> Reading | None:
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
        return Reading(node["probe_epoch"], node, domains)

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
        usual = re.findall(rb"^%b_([a-zA-Z0-9_:]+) (%b)$" % (prefix, _VALUE), page, flags=re.MULTILINE)
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
            found = list(_samples(line)) if looked_at <= _MOST_UNUSUAL_LINES else []
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


# --- node_exporter and libvirt exporters ------------------------------------------------------------

_USER_MODES = {"user", "nice"}
#: Idle is not used, waiting for a disk neither, and a guest's time is in user already.
_MODES_LEFT_OUT = {"idle", "iowait", "guest", "guest_nice"}
#: libvirt's "shut off" and "crashed": defined, but not there.
_OFF = {5.0, 6.0}
_STATES = ("libvirt_domain_state_code", "libvirt_domain_info_vstate", "libvirt_domain_info_state")
#: How the exporters in use call a figure, and by what it is multiplied to be vmprobe's. The first one found counts.
_DOMAIN_METRICS: Mapping[str, tuple[float, tuple[str, ...]]] = {
    "cpu_alloc": (1.0, ("libvirt_domain_info_virtual_cpus",)),
    "cpu_cputime": (_NS_PER_S, ("libvirt_domain_info_cpu_time_seconds_total",)),
    "memory_alloc": (
        1 / _KIB,
        (
            "libvirt_domain_memory_stats_actual_balloon_bytes",
            "libvirt_domain_memory_stats_current_balloon_bytes",
            "libvirt_domain_info_memory_usage_bytes",
            "libvirt_domain_info_maximum_memory_bytes",
        ),
    ),
    "memory_rss": (1 / _KIB, ("libvirt_domain_memory_stats_rss_bytes", "libvirt_domain_stat_memory_rss_bytes")),
    "memory_unused": (
        1 / _KIB,
        ("libvirt_domain_memory_stats_unused_bytes", "libvirt_domain_stat_memory_unused_bytes"),
    ),
    "memory_available": (
        1 / _KIB,
        ("libvirt_domain_memory_stats_available_bytes", "libvirt_domain_stat_memory_available_bytes"),
    ),
    "memory_usable": (
        1 / _KIB,
        ("libvirt_domain_memory_stats_usable_bytes", "libvirt_domain_stat_memory_usable_bytes"),
    ),
}
_LIBVIRT_NAMES = {"libvirt_up", *_STATES, *(name for _, names in _DOMAIN_METRICS.values() for name in names)}
_NODE_NAMES = {"node_cpu_seconds_total", "node_memory_MemTotal_bytes", "node_memory_MemAvailable_bytes"}

Sample = tuple[str, Mapping[str, str], float]


def _samples(line: bytes) -> Iterator[Sample]:
    """The sample on a line, if there is one."""
    if len(line) > _LONGEST_LINE:
        return
    try:
        for family in text_string_to_metric_families(line.decode("utf-8") + "\n"):
            for sample in family.samples:
                yield sample.name, sample.labels, float(sample.value)
    except (ValueError, UnicodeDecodeError, IndexError, KeyError, TypeError):
        return


_LABELLED = re.compile(
    rb'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_][a-zA-Z0-9_]*="[^"\\\n]*",?)*)\})? (%b)$' % _VALUE, re.MULTILINE
)
_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="([^"\\\n]*)"')


@dataclass(slots=True)
class LabelPages:
    """Reads the pages of node_exporter and of a libvirt exporter: kumina's (Debian), Tinkoff's or inovex'.

    Attributes
    ----------
    bad_lines : int
        Lines of interest that could not be read so far.
    """

    bad_lines: int = 0
    _series: frozenset[tuple[str, str]] | None = None

    def read(self, node_page: bytes, libvirt_page: bytes | None, epoch_ms: float) -> Reading:
        """What the pages of one scrape tell.

        Parameters
        ----------
        node_page : bytes
        libvirt_page : bytes or None
            None when the exporter did not answer: nothing is known of the domains then.
        epoch_ms : float
            When they were asked for, Unix milliseconds.

        Raises
        ------
        PageError
            When the node's page is empty or not node_exporter's.
        """
        if not node_page.endswith(b"\n"):
            raise PageError("the page is cut off in the middle of a line")
        node = self._node(node_page)
        whole = libvirt_page is not None and (libvirt_page.endswith(b"\n") or not libvirt_page)
        domains = self._domains(libvirt_page) if libvirt_page is not None and whole else None
        return Reading(epoch_ms, node, domains)

    def _node(self, page: bytes) -> dict[str, float]:
        series: set[tuple[str, str]] = set()
        metrics: dict[str, float] = {}
        busy = {"cpu_user": 0.0, "cpu_kernel": 0.0}
        for name, labels, value in self._interesting(page, _NODE_NAMES):
            if name == "node_cpu_seconds_total":
                mode = labels.get("mode", "")
                series.add((labels.get("cpu", ""), mode))
                if mode not in _MODES_LEFT_OUT:
                    busy["cpu_user" if mode in _USER_MODES else "cpu_kernel"] += value * _NS_PER_S
            elif name == "node_memory_MemTotal_bytes":
                metrics["memory_total"] = value / _KIB
            else:
                metrics["memory_available"] = value / _KIB
        if not series or "memory_total" not in metrics:
            raise PageError("not a page of node_exporter: no node_cpu_seconds_total or node_memory_MemTotal_bytes")
        before, self._series = self._series, frozenset(series)
        cores = {cpu for cpu, _ in series}
        if before is not None and before != self._series:
            # A core went or came: sums over others than last time have no rate.
            return {"cpu_total": float(len(cores)), **metrics}
        return {"cpu_total": float(len(cores)), **busy, **metrics}

    def _domains(self, page: bytes) -> dict[str, dict[str, float]] | None:
        """The domains that run, or None when the exporter itself had nothing to tell."""
        figures: dict[str, dict[str, float]] = defaultdict(dict)
        up: float | None = None
        for name, labels, value in self._interesting(page, _LIBVIRT_NAMES):
            if name == "libvirt_up":
                up = value
            elif "domain" in labels:
                figures[labels["domain"]][name] = value
        # An exporter that stops at the first failing domain says so here, and shows the others as gone.
        if up == 0.0 or (up is None and not figures):
            return None
        return {
            domain: _as_vmprobe(found)
            for domain, found in figures.items()
            if "libvirt_domain_info_virtual_cpus" in found and not any(found.get(state) in _OFF for state in _STATES)
        }

    def _interesting(self, page: bytes, names: set[str]) -> Iterator[Sample]:
        """The finite samples of some metrics."""
        wanted = {name.encode() for name in names}
        seen = 0
        for name, labels, text in _LABELLED.findall(page):
            if name in wanted:
                seen += 1
                try:
                    value = float(text)
                    pairs = {key.decode(): label.decode("utf-8") for key, label in _LABEL.findall(labels)}
                except ValueError:
                    self.bad_lines += 1
                    continue
                if math.isfinite(value):
                    yield name.decode(), pairs, value
        starts = re.compile(rb"^(?:%b)\b" % b"|".join(sorted(wanted)), re.MULTILINE)
        if seen < len(starts.findall(page)):
            yield from self._unusual(page, names, starts)

    def _unusual(self, page: bytes, names: set[str], starts: re.Pattern[bytes]) -> Iterator[Sample]:
        looked_at = 0
        for line in page.split(b"\n"):
            if starts.match(line) and not _LABELLED.match(line):
                looked_at += 1
                if looked_at > _MOST_UNUSUAL_LINES:
                    self.bad_lines += 1
                    continue
                found = [sample for sample in _samples(line) if sample[0] in names]
                self.bad_lines += not found
                yield from (sample for sample in found if math.isfinite(sample[2]))


def _as_vmprobe(found: Mapping[str, float]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for metric, (factor, names) in _DOMAIN_METRICS.items():
        for name in names:
            value = found.get(name)
            # 0 bytes stand for statistics that a guest does not give.
            if value is not None and (value > 0 or not metric.startswith("memory")):
                metrics[metric] = value * factor
                break
    return metrics
