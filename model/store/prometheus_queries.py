"""PromQL for groups of nodes. Every value from outside is quoted by :func:`quoted`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_MATCHER = re.compile(rf'\s*({_NAME.pattern})\s*(=~|!~|!=|=)\s*"((?:[^"\\\n]|\\.)*)"\s*(,|$)')
_ESCAPES = {"\\": "\\", '"': '"', "n": "\n", "t": "\t"}

#: Time of the guests, which the mode "user" contains.
_GUEST_MODES = ("guest", "guest_nice")
_IDLE_MODES = ("idle", "iowait")

_STATES = ("libvirt_domain_state_code", "libvirt_domain_info_vstate", "libvirt_domain_info_state")
_VCPUS = "libvirt_domain_info_virtual_cpus"
_MEMORY_TOTAL = "node_memory_MemTotal_bytes"
_WAIT, _RUN = "libvirt_domain_vcpu_delay_seconds_total", "libvirt_domain_vcpu_time_seconds_total"

#: What a VM has now; the first one that exists and is not 0 counts, as in the aggregator.
_ALLOCATIONS = (
    "libvirt_domain_memory_stats_actual_balloon_bytes",
    "libvirt_domain_memory_stats_current_balloon_bytes",
    "libvirt_domain_info_memory_usage_bytes",
    "libvirt_domain_info_maximum_memory_bytes",
)


def quoted(text: str) -> str:
    """Quote a string literal of PromQL."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def is_label_name(text: str) -> bool:
    """Whether this can be the name of a label."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Matcher:
    """A condition on a label.

    Attributes
    ----------
    label : str
    operator : str
        ``=``, ``!=``, ``=~`` or ``!~``.
    value : str
    """

    label: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{self.label}{self.operator}{quoted(self.value)}"


def parse_matchers(text: str) -> tuple[Matcher, ...]:
    """Parse matchers as they stand in a selector, such as ``cluster="a",env!="test"``.

    Raises
    ------
    ValueError
    """
    found, at = [], 0
    while at < len(text):
        match = _MATCHER.match(text, at)
        if match is None:
            raise ValueError(f'{text[at : at + 40]!r} is not a matcher such as cluster="a"')
        value = re.sub(r"\\(.)", lambda escape: _unescaped(escape[1]), match[3])
        if "~" in match[2]:
            _check_pattern(value)
        found.append(Matcher(match[1], match[2], value))
        at = match.end()
    return tuple(found)


def _unescaped(character: str) -> str:
    if character not in _ESCAPES:
        raise ValueError(f"\\{character} is not an escape of a matcher")
    return _ESCAPES[character]


def _check_pattern(text: str) -> None:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        raise ValueError(f"{text[:40]!r} is not a regular expression") from None


def any_of(label: str, values: Sequence[str]) -> Matcher:
    """The matcher of a label that has one of these values."""
    if len(values) == 1:
        return Matcher(label, "=", values[0])
    return Matcher(label, "=~", "|".join(map(re.escape, values)))


def select(metric: str, *matchers: Matcher) -> str:
    """An instant selector."""
    return f"{metric}{{{','.join(map(str, matchers))}}}"


def select_any(metrics: Sequence[str], *matchers: Matcher) -> str:
    """An instant selector of several metrics."""
    return f"{{{','.join(map(str, (any_of('__name__', metrics), *matchers)))}}}"


@dataclass(frozen=True, slots=True)
class Scope:
    """The targets that a query asks for.

    Attributes
    ----------
    label : str
        The label that names them.
    nodes, libvirts : tuple of str
        Its values at the node exporters and at the libvirt exporters.
    extra : tuple of Matcher
        Of all series.
    step_s : int
    """

    label: str
    nodes: tuple[str, ...]
    libvirts: tuple[str, ...]
    extra: tuple[Matcher, ...]
    step_s: int

    def node(self, metric: str, *more: Matcher) -> str:
        """A selector of a metric of node_exporter."""
        return select(metric, any_of(self.label, self.nodes), *more, *self.extra)

    def libvirt(self, metric: str) -> str:
        """A selector of a metric of the libvirt exporter."""
        return select(metric, any_of(self.label, self.libvirts), *self.extra)

    def libvirt_any(self, metrics: Sequence[str]) -> str:
        """A selector of several metrics of the libvirt exporter."""
        return select_any(metrics, any_of(self.label, self.libvirts), *self.extra)

    def by(self, aggregation: str, expression: str, *labels: str) -> str:
        """Aggregate by target and further labels: two jobs may scrape the same exporter."""
        return f"{aggregation} by ({','.join((self.label, *labels))}) ({expression})"


Query = Callable[[Scope], str]


def _of_node(metric: str, aggregation: str = "max") -> Query:
    return lambda scope: scope.by(aggregation, scope.node(metric))


def _of_domain(metric: str, aggregation: str = "max") -> Query:
    return lambda scope: scope.by(aggregation, scope.libvirt(metric), "domain")


def _first_of(metrics: Sequence[str], aggregation: str = "max") -> Query:
    """Of each domain the first of these metrics that it has; 0 bytes are no statistics."""

    def query(scope: Scope) -> str:
        return " or ".join(scope.by(aggregation, f"{scope.libvirt(metric)} > 0", "domain") for metric in metrics)

    return query


def _names_of_statistic(name: str) -> tuple[str, str]:
    return f"libvirt_domain_memory_stats_{name}_bytes", f"libvirt_domain_stat_memory_{name}_bytes"


def _statistic(name: str, aggregation: str = "max") -> Query:
    return _first_of(_names_of_statistic(name), aggregation)


def _cpu_without(modes: Sequence[str]) -> Query:
    def query(scope: Scope) -> str:
        times = scope.node("node_cpu_seconds_total", Matcher("mode", "!~", "|".join(modes)))
        return scope.by("sum", scope.by("max", times, "cpu", "mode"), "mode")

    return query


def _cores(scope: Scope) -> str:
    idle = scope.node("node_cpu_seconds_total", Matcher("mode", "=", "idle"))
    return scope.by("count", scope.by("count", idle, "cpu"))


def _libvirt_time(metric: str) -> Query:
    return lambda scope: scope.by("max", f"timestamp({scope.libvirt(metric)})")


def _listed(scope: Scope) -> str:
    # A server shows the last sample of a series that has ended for five minutes, unless it has a marker of its end.
    # timestamp() would take ten times as long.
    return scope.by("max", f"count_over_time({scope.libvirt(_VCPUS)}[{_open(scope.step_s)}])", "domain")


def _queue(scope: Scope) -> str:
    waiting = scope.node("node_schedstat_waiting_seconds_total")
    return scope.by("sum", scope.by("max", waiting, "cpu"))


def _vcpu_times(metric: str, aggregation: str, *, on_node: bool) -> Query:
    def query(scope: Scope) -> str:
        source = scope.node(metric) if on_node else scope.libvirt(metric)
        return scope.by(aggregation, scope.by("max", source, "domain", "vcpu"), "domain")

    return query


#: Metrics whose samples are the scrapes of an exporter; the first one that it has counts.
NODE_SCRAPES = (_MEMORY_TOTAL,)
LIBVIRT_SCRAPES = ("libvirt_up", "up", _VCPUS)

#: Figures of nodes. Times come first: a sample that arrives meanwhile is then newer than its time, and a rate too high.
NODE_TIME = "node_time"
NODE_QUERIES: Mapping[str, Query] = {
    NODE_TIME: lambda scope: scope.by("max", f"timestamp({scope.node(_MEMORY_TOTAL)})"),
    "cpu_modes": _cpu_without(_GUEST_MODES),
    "cores": _cores,
    "memory_total": _of_node(_MEMORY_TOTAL, "min"),
    "memory_available": _of_node("node_memory_MemAvailable_bytes", "min"),
}

#: The least memory of the hour before a time.
MEMORY_LEAST = "memory_least"


def memory_least(window_s: float) -> Query:
    """The query of :data:`MEMORY_LEAST`."""
    return lambda scope: scope.by("min", f"min_over_time({scope.node(_MEMORY_TOTAL)}[{window_s:.0f}s])")


#: Figures of the libvirt exporters.
LIBVIRT_TIME, LIBVIRT_UP = "libvirt_time", "libvirt_up"
LIBVIRT_QUERIES: Mapping[str, Query] = {
    LIBVIRT_TIME: _libvirt_time("libvirt_up"),
    LIBVIRT_UP: lambda scope: scope.by("min", scope.libvirt("libvirt_up")),
}

#: An exporter without libvirt_up is known to respond while it lists a domain.
OTHERWISE_LIBVIRT_TIME = _libvirt_time(_VCPUS)

#: Figures of domains: whether they were listed, what they have, whether they are off, and their CPU time.
LISTED = "listed"
SIZE_QUERIES: Mapping[str, Query] = {
    LISTED: _listed,
    "vcpus": _of_domain(_VCPUS),
    "allocation": _first_of(_ALLOCATIONS),
    "off": lambda scope: scope.by("max", f"({scope.libvirt_any(_STATES)} >= 5) <= 6", "domain"),
    "cpu_time": _of_domain("libvirt_domain_info_cpu_time_seconds_total"),
}

MEMORY_QUERIES: Mapping[str, Query] = {
    "unused": _statistic("unused", "min"),
    "available": _statistic("available"),
    "rss": _statistic("rss"),
}

#: Counters of waits, of nodes and of domains. A textfile of node_exporter may have those of domains.
NODE_WAIT_QUERIES: Mapping[str, Query] = {
    "psi_cpu": _of_node("node_pressure_cpu_waiting_seconds_total"),
    "psi_memory": _of_node("node_pressure_memory_stalled_seconds_total"),
    "swap_in": _of_node("node_vmstat_pswpin"),
    "oom_kills": _of_node("node_vmstat_oom_kill"),
    "queue": _queue,
}
DOMAIN_WAIT_QUERIES: Mapping[str, Query] = {
    "wait": _vcpu_times(_WAIT, "sum", on_node=False),
    "run": _vcpu_times(_RUN, "sum", on_node=False),
    "waiting_vcpus": _vcpu_times(_WAIT, "count", on_node=False),
}
TEXTFILE_WAIT_QUERIES: Mapping[str, Query] = {
    "wait": _vcpu_times(_WAIT, "sum", on_node=True),
    "run": _vcpu_times(_RUN, "sum", on_node=True),
    "waiting_vcpus": _vcpu_times(_WAIT, "count", on_node=True),
}


def node_scrapes(window_s: float) -> Query:
    """Scrapes of a node in the time before each point."""
    return lambda scope: scope.by("max", f"count_over_time({scope.node(_MEMORY_TOTAL)}[{_open(window_s)}])")


def libvirt_scrapes(window_s: float, *, has_up: bool = True) -> Query:
    """The same of a libvirt exporter, by ``libvirt_up`` or by its domains."""
    metric = "libvirt_up" if has_up else _VCPUS
    return lambda scope: scope.by("max", f"count_over_time({scope.libvirt(metric)}[{_open(window_s)}])")


def _open(window_s: float) -> str:
    """A window without its begin: Prometheus 2 counts a sample there, too."""
    return f"{1000 * window_s - 1:.0f}ms"


def _is_idle() -> Matcher:
    return Matcher("mode", "=~", "|".join(_IDLE_MODES))


def _idle(scope: Scope) -> str:
    return scope.by("sum", scope.node("node_cpu_seconds_total", _is_idle()))


def _idle_series(scope: Scope) -> str:
    return scope.by("count", scope.node("node_cpu_seconds_total", Matcher("mode", "=", "idle")))


def _idle_of_duplicates(scope: Scope) -> str:
    return scope.by("sum", scope.by("max", scope.node("node_cpu_seconds_total", _is_idle()), "cpu", "mode"))


#: Figures of a long time in short steps: those that servers compute quickly. A sum over series without a sum over CPUs
#: before it takes a seventh of the time, and is wrong where two jobs scrape a node: then there are more series of idle
#: time than cores.
IDLE, IDLE_SERIES = "idle", "idle_series"
FINE_QUERIES: Mapping[str, Query] = {
    IDLE: _idle,
    "memory_available_fine": _of_node("node_memory_MemAvailable_bytes", "min"),
}
IDLE_OF_DUPLICATES: Query = _idle_of_duplicates
FINE_DOMAIN_QUERIES: Mapping[str, Query] = {
    LIBVIRT_UP: LIBVIRT_QUERIES[LIBVIRT_UP],
    # Without max by (...): of several series of a domain the reader chooses.
    "cpu_time": lambda scope: scope.libvirt("libvirt_domain_info_cpu_time_seconds_total"),
    "unused": lambda scope: scope.libvirt_any(_names_of_statistic("unused")),
}

#: The same in long steps; the times of scrapes and the idle time are those of the short steps.
SLOW_QUERIES: Mapping[str, Query] = {
    **{name: query for name, query in NODE_QUERIES.items() if name != NODE_TIME},
    "cpu_modes": _cpu_without((*_GUEST_MODES, *_IDLE_MODES)),
    IDLE_SERIES: _idle_series,
}
SLOW_DOMAIN_QUERIES: Mapping[str, Query] = {name: SIZE_QUERIES[name] for name in ("vcpus", "allocation", "off")}


@dataclass(frozen=True, slots=True)
class DiscoveryQueries:
    """Which exporters a server has, and how often it scrapes them.

    Attributes
    ----------
    label : str
        The label that nodes and libvirt exporters have in common, or ``instance``.
    extra : tuple of Matcher
    """

    label: str
    extra: tuple[Matcher, ...]

    def _seen(self, *metrics: str) -> str:
        sources = (f"last_over_time({select(metric, *self.extra)}[1h])" for metric in metrics)
        labels = ",".join(dict.fromkeys((self.label, "instance")))
        return " or ".join(f"count by ({labels}) ({source})" for source in sources)

    @property
    def nodes(self) -> str:
        """Exporters of nodes that were seen within the last hour."""
        return self._seen("node_uname_info", _MEMORY_TOTAL)

    @property
    def libvirts(self) -> str:
        """Exporters of libvirt that were seen within the last hour."""
        return self._seen("libvirt_up", _VCPUS)

    def scrapes(self, metric: str, window_s: int, targets: Sequence[str]) -> str:
        """The samples of a metric of some exporters in a window; of all exporters when none is named."""
        matchers = (any_of(self.label, targets), *self.extra) if targets else self.extra
        return f"{select(metric, *matchers)}[{window_s}s]"

    def display_names(self, metric: str, target: str) -> str:
        """Series of an exporter whose labels have the display names of its domains."""
        return select(metric, any_of(self.label, [target]), *self.extra)
