"""Metric names of vmprobe, which encode the machine: ``global_<metric>`` and ``domain_<domain>_<metric>``."""

from __future__ import annotations

import re
from collections.abc import Container

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

_PERF_METRIC = re.compile(r"[a-z0-9]+\Z")

#: A lookahead, because sections may overlap: in cpu_cpu_alloc, one underscore ends a section and starts another.
_SECTION = re.compile(rf"(?=_({'|'.join(_SECTIONS)})_)")

#: Longer names are ignored: a page may be made to be slow to parse.
LONGEST_NAME = 512

#: Cached names; a page whose names always change must not fill the memory.
MOST_NAMES = 200_000

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


class NameCache:
    """Splits names once: the pages of a probe repeat them."""

    def __init__(self) -> None:
        self._places: dict[bytes, Place | None] = {}

    def split(self, name: bytes, domains: Container[str]) -> Place | None:
        """As :func:`split_name`; None for names that are too long."""
        places = self._places
        if name not in places:
            if len(places) >= MOST_NAMES:
                places.clear()
            places[name] = split_name(name.decode("ascii"), domains) if len(name) <= LONGEST_NAME else None
        return places[name]
