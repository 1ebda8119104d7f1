"""Metric names of vmprobe, which encode the machine: ``global_<metric>`` and ``domain_<domain>_<metric>``."""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

_SECTIONS = ("probe", "cpu", "memory", "perf", "sched", "stat")

_METRICS = {
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

_KNOWN = {f"{section}_{metric}" for section, metrics in _METRICS.items() for metric in metrics}

_PERF_METRIC = re.compile(r"[a-z0-9]{1,64}\Z")

#: Prefix of the metrics whose names the configuration of the probe determines.
_PERF = "perf_"

#: A lookahead, because sections may overlap: in cpu_cpu_alloc, one underscore ends a section and starts another.
_SECTION = re.compile(rf"(?=_({'|'.join(_SECTIONS)})_)")

#: Longer names are ignored: a page may be made to be slow to parse.
LONGEST_NAME = 512

#: Counters of perf of one probe, whatever its pages say: each one is a column of the store for ever.
MOST_PERF_METRICS = 64

#: More domains or metrics cannot be numbered with 16 bits.
_MOST_PACKED = 2**16

#: Domain, or None for the node, and metric.
Place = tuple[str | None, str]


def split_name(name: str, domains: Container[str] = ()) -> Place | None:
    """Split a metric name of vmprobe, without its prefix, into domain and metric.

    Names of domains may contain ``_`` and even the name of a section. A name is split before a known metric, else
    after a known domain, else at the first section.

    Parameters
    ----------
    name : str
    domains : container of str
        Known domains.

    Returns
    -------
    (domain, metric) or None
        The domain is None for the node. None alone when the name is not one of vmprobe.

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
    # Longest domain first: a domain may be named like a section, a metric rarely.
    splits = [
        (rest[: match.start()], match[1], rest[match.end() + len(match[1]) + 2 :])
        for match in reversed(list(_SECTION.finditer(rest)))
        if match.start() > 0 and match.end() + len(match[1]) + 2 < len(rest)
    ]
    if not splits:
        return None
    domain, section, metric = next(
        (split for split in splits if _is_known(split[1], split[2])),
        next((split for split in splits if split[0] in domains), splits[-1]),
    )
    return domain, f"{section}_{metric}"


def _is_known(section: str, metric: str) -> bool:
    return metric in _METRICS.get(section, ()) or (section == "perf" and bool(_PERF_METRIC.match(metric)))


@dataclass(frozen=True, slots=True)
class PageNames:
    """The names of a page and their places, at a tenth of the size of a dictionary.

    Attributes
    ----------
    prefix : bytes
        Of all names.
    text : bytes
        The names with their prefix, each with a blank behind it; no name has one in it.
    domains : sequence of str or None
    metrics : sequence of str
        The empty one is that of names without a place.
    domain_of, metric_of : array of int
        Domain and metric of each name.
    """

    prefix: bytes
    text: bytes
    domains: Sequence[str | None]
    metrics: Sequence[str]
    domain_of: array[int]
    metric_of: array[int]

    def places(self) -> dict[bytes, Place | None]:
        """Domain and metric of each name, in the order of the page."""
        domains = map(self.domains.__getitem__, self.domain_of)
        metrics = map(self.metrics.__getitem__, self.metric_of)
        places = ((domain, metric) if metric else None for domain, metric in zip(domains, metrics, strict=True))
        return dict(zip(self.names(), places, strict=True))

    def names(self) -> list[bytes]:
        """The names without their prefix, in the order of the page."""
        return self.text[len(self.prefix) : -1].split(b" " + self.prefix)


_NO_PLACE: Place = (None, "")

#: Packed if that is possible.
Places = PageNames | dict[bytes, Place | None]


def pack_places(places: dict[bytes, Place | None], prefix: bytes) -> Places:
    """The places as :class:`PageNames`; as they are if that is not possible.

    Parameters
    ----------
    places : dict of name to Place or None
    prefix : bytes
        Of all names.
    """
    text = prefix + (b" " + prefix).join(places) + b" "
    if not 0 < len(places) <= _MOST_PACKED or b"" in places or text.count(b" ") != len(places):
        return places
    domains: dict[str | None, int] = {}
    metrics: dict[str, int] = {}
    known = [place or _NO_PLACE for place in places.values()]
    domain_of = array("H", [domains.setdefault(domain, len(domains)) for domain, _ in known])
    metric_of = array("H", [metrics.setdefault(metric, len(metrics)) for _, metric in known])
    # The names of metrics are those of all nodes.
    return PageNames(prefix, text, list(domains), list(map(sys.intern, metrics)), domain_of, metric_of)


class NameCache:
    """Splits the names of successive pages: those of the page before are split already.

    Parameters
    ----------
    prefix : bytes
        Of all names on the pages.

    Attributes
    ----------
    before : PageNames or dict of name to Place or None
        The last page.
    """

    def __init__(self, prefix: bytes) -> None:
        self.before: Places = {}
        self._prefix = prefix

    def split(self, names: Iterable[bytes]) -> dict[bytes, Place | None]:
        """Each name as :func:`split_name`; None for names that are too long."""
        known = self.before.places() if isinstance(self.before, PageNames) else self.before
        places = {}
        domains: set[str] = set()
        for name in names:
            if name in known:
                place = known[name]
            else:
                place = split_name(name.decode("ascii"), domains) if len(name) <= LONGEST_NAME else None
            if place is not None and place[0] is not None:
                domains.add(place[0])
            places[name] = place
        self.before = pack_places(places, self._prefix)
        return places


class UsedMetrics:
    """Selects the metrics of a probe that have a meaning, with a limited number of counters of perf."""

    def __init__(self) -> None:
        self._perf: set[str] = set()

    def select(self, places: Mapping[bytes, Place | None]) -> dict[bytes, Place | None]:
        """The places, without those of other metrics: None, as for names that are not of the probe."""
        return {
            name: place if place is not None and self._is_used(place[1]) else None for name, place in places.items()
        }

    def _is_used(self, metric: str) -> bool:
        if metric in _KNOWN or metric in self._perf:
            return True
        if not metric.startswith(_PERF) or not _PERF_METRIC.match(metric, len(_PERF)):
            return False
        if len(self._perf) >= MOST_PERF_METRICS:
            return False
        self._perf.add(metric)
        return True
