"""A Prometheus server that a site already has, as a store that is only read."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from ..samples import LastConfig, Period, Samples, ScrapeSample
from .base import Encoded, FleetRow, StoreRefused, StoreUnavailable
from .prometheus_groups import DOMAINS_PER_NODE, GroupReader, Wanted
from .prometheus_history import read_history
from .prometheus_nodes import Node, NodeFinder
from .prometheus_queries import NODE_QUERIES, NODE_TIME
from .prometheus_samples import Agreed, add_bookings, build_period, compare, domain_rows, lookback_points, node_rows
from .prometheus_server import Grid, PrometheusServer
from .settings import NodePair, PrometheusSettings

#: Nodes that are read together.
_MOST_NODES = 100
#: Size of all groups that are kept for the nodes that have not been read yet, bytes.
_MOST_BYTES = 256 * 2**20
#: Groups that are kept, whatever their size: of the present period, and of the one before.
_LEAST_GROUPS = 2
#: Domains are compared with those of the reads before, of the same length, that ended at most so long ago.
_AGREED_S = 3600
#: How many of these lengths are kept of a node, the longest ones, and reads of each: the last one may be repeated.
_AGREED_LENGTHS, _AGREED_READS = 4, 2
#: The newest sample is looked for in so many steps, then at points of this distance over this time.
_NEWEST_STEPS = 20
_FAR_STEP_S, _FAR_S = 300, 30 * 86400
_FIRST_POINTS = 5000

_MEMORY_FIELDS = {"mem_usage", "mem_rss"}
_WAIT_FIELDS = {"cpu_wait", "cpu_wait_share", "psi_cpu", "psi_memory", "swap_in", "oom_kills"}
_CONFIG_FIELDS = ("cpu", "mem")
_READ_ONLY = "a Prometheus server is read only"

#: Nodes of a group, its grid, and what was read.
_Key = tuple[tuple[Node, ...], Grid, Wanted]


class _Group:
    """Periods of the nodes of a group; the first thread reads them, the others wait."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.periods: Mapping[str, Period] = {}
        self.error: Exception | None = None
        self.size = 0


class PrometheusStore:
    """The nodes of a Prometheus server. Safe to use from any thread.

    Parameters
    ----------
    settings : PrometheusSettings
    clock, monotonic : callable
        Unix seconds, monotonic seconds.
    """

    def __init__(
        self,
        settings: PrometheusSettings,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._server = PrometheusServer(settings.access)
        self._finder = NodeFinder(self._server, settings, clock, monotonic)
        self._reader = GroupReader(self._server, self._finder.label, settings.match, settings.max_samples)
        self._lock = threading.Lock()
        self._groups: OrderedDict[_Key, _Group] = OrderedDict()
        self._agreed: dict[str, dict[tuple[int, Wanted], list[tuple[Grid, Agreed]]]] = {}

    def encode(self, sample: ScrapeSample) -> Encoded:  # noqa: ARG002
        """Refused."""
        raise StoreRefused(_READ_ONLY)

    def write(self, samples: Sequence[Encoded]) -> int:  # noqa: ARG002
        """Refused."""
        raise StoreRefused(_READ_ONLY)

    def write_fleet(self, row: FleetRow) -> None:  # noqa: ARG002
        """Refused."""
        raise StoreRefused(_READ_ONLY)

    def read_fleet(self, start_ms: int, end_ms: int) -> list[FleetRow]:  # noqa: ARG002
        """None: no master writes to the server."""
        return []

    def nodes(self) -> list[str]:
        """Names of the nodes that were found, sorted. They are looked for again every five minutes."""
        return list(self._finder.nodes())

    def pairs(self) -> dict[str, NodePair]:
        """The exporters of each node, for settings with which it need not be found again.

        Raises
        ------
        StoreUnavailable
        """
        return {name: NodePair(node.node, node.libvirt, node.step_s) for name, node in self._finder.nodes().items()}

    def display_names(self, node: str) -> dict[str, str]:
        """Names of the domains of a node as their users call them, by domain; only where the exporter reports them.

        Raises
        ------
        StoreUnavailable
        """
        found = self._finder.nodes().get(node)
        return {} if found is None else self._finder.display_names(found)

    def read(self, node: str, start_ms: int, end_ms: int, fields: Collection[str], *, domains: bool = True) -> Period:
        """Read a period at the interval of the scrapes; the first read of a group of nodes reads all of them."""
        wanted = Wanted(
            memory=domains and not _MEMORY_FIELDS.isdisjoint(fields), waits=not _WAIT_FIELDS.isdisjoint(fields)
        )
        return _select(self._period(node, start_ms, end_ms, wanted), fields, domains=domains)

    def last_configs(self, node: str, start_ms: int, end_ms: int) -> dict[str, LastConfig]:
        """The last values, from the figures that :meth:`read` needs for the node itself."""
        configs = {}
        for name, samples in self._period(node, start_ms, end_ms, Wanted(memory=False, waits=False)).domains.items():
            places = {key: np.flatnonzero(~np.isnan(samples.fields[key])) for key in _CONFIG_FIELDS}
            last = {key: int(place[-1]) for key, place in places.items() if place.size}
            if last:
                values = {key: float(samples.fields[key][at]) for key, at in last.items()}
                configs[name] = LastConfig(values, int(samples.time_ms[max(last.values())]))
        return configs

    def begins_ms(self, node: str, start_ms: int, end_ms: int) -> int | None:
        """Time of the first sample, found in long steps first."""
        node_on_server = self._finder.nodes().get(node)
        if node_on_server is None or end_ms <= start_ms:
            return None
        # A server shows a sample for five minutes: a longer step may miss it.
        step_s = max(node_on_server.step_s, min(_FAR_STEP_S, math.ceil((end_ms - start_ms) / 1000 / _FIRST_POINTS)))
        grid = _grid(start_ms, end_ms, step_s)
        (seen,) = np.nonzero(self._times(node_on_server, grid) * 1000 >= start_ms)
        if not seen.size:
            return None
        near_ms = int(grid.times_s[seen[0]]) * 1000
        first_ms, last_ms = max(start_ms, near_ms - step_s * 1000), min(end_ms, near_ms + step_s * 1000)
        times_ms = self._period(node, first_ms, last_ms, Wanted(memory=False, waits=False)).node.time_ms
        return int(times_ms[0]) if times_ms.size else None

    def resolution(self, node: str, start_ms: int, end_ms: int) -> None:  # noqa: ARG002
        """None: every scrape is read."""
        return

    def last(self, node: str) -> ScrapeSample | None:
        """Newest sample of a node in the last steps, otherwise at the time at which it was seen last."""
        found = self._finder.nodes().get(node)
        if found is None:
            return None
        now_ms = int(self._clock() * 1000) + 1
        sample = self._newest(found, now_ms)
        if sample is None:
            times = self._times(found, _grid(now_ms - _FAR_S * 1000, now_ms, _FAR_STEP_S))
            seen = times[~np.isnan(times)]
            sample = self._newest(found, int((seen[-1] + found.step_s) * 1000) + 1) if seen.size else None
        return sample

    def history(
        self, nodes: Collection[str], start_ms: int, end_ms: int, slice_s: float
    ) -> Iterator[tuple[str, Period]]:
        """Read many nodes over a long time, group by group, in steps that suffice for slices of a length.

        Parameters
        ----------
        nodes : collection of str
        start_ms, end_ms : int
            Unix milliseconds; the start is included, the end is not.
        slice_s : float

        Yields
        ------
        (str, Period)
            In any order; without the nodes that are not on the server, and without the fields of waits and
            ``mem_rss``.

        Raises
        ------
        StoreUnavailable
        """
        chosen = [node for name, node in self._finder.nodes().items() if name in nodes]
        return read_history(self._reader, chosen, start_ms, end_ms, slice_s, self._settings.max_samples)

    def check(self) -> str:
        """Look for nodes, and get the version."""
        version = self._server.version()
        nodes, left_out = self._finder.nodes(), len(self._finder.left_out)
        if not nodes:
            more = f"; {left_out} hosts have no libvirt exporter, or several exporters" if left_out else ""
            raise StoreUnavailable(f"{self._server.name}: no node with node_exporter and a libvirt exporter{more}")
        more = f", {left_out} hosts left out" if left_out else ""
        return f"Prometheus API {version or 'of an unknown version'}, {len(nodes)} nodes{more}, read only"

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def _newest(self, node: Node, end_ms: int) -> ScrapeSample | None:
        start_ms = end_ms - _NEWEST_STEPS * node.step_s * 1000
        period = self._period(node.name, start_ms, end_ms, Wanted(memory=True, waits=False))
        if not period.node.time_ms.size:
            return None
        time_ms = int(period.node.time_ms[-1])
        domains = {
            name: _fields_at(samples, -1)
            for name, samples in period.domains.items()
            if int(samples.time_ms[-1]) == time_ms
        }
        return ScrapeSample(node.name, time_ms, _fields_at(period.node, -1), domains)

    def _times(self, node: Node, grid: Grid) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """When a node was scraped last before each point of a grid, Unix seconds; NaN where it was not."""
        found = self._reader.figures([node], grid, {NODE_TIME: NODE_QUERIES[NODE_TIME]})[NODE_TIME]
        return found[0].values if found else np.full(grid.points, np.nan)

    def _period(self, name: str, start_ms: int, end_ms: int, wanted: Wanted) -> Period:
        nodes = self._finder.nodes()
        node = nodes.get(name)
        if node is None or end_ms <= start_ms:
            return Period(_no_samples(), {})
        grid = _grid(start_ms, end_ms, node.step_s)
        if not grid.points:
            return Period(_no_samples(), {})
        group = self._group(node, list(nodes.values()), grid)
        return _cut(self._read_group(group, grid, wanted)[name], start_ms, end_ms)

    def _group(self, node: Node, nodes: Sequence[Node], grid: Grid) -> tuple[Node, ...]:
        """The nodes that are read together with this one."""
        alike = [other for other in nodes if other.step_s == node.step_s]
        points = grid.points + lookback_points(grid.step_s)
        size = min(_MOST_NODES, max(1, self._settings.max_samples // (points * DOMAINS_PER_NODE)))
        first = alike.index(node) // size * size
        return tuple(alike[first : first + size])

    def _read_group(self, nodes: tuple[Node, ...], grid: Grid, wanted: Wanted) -> Mapping[str, Period]:
        with self._lock:
            group, reads = self._cached(nodes, grid, wanted)
        if reads:
            try:
                group.periods = dict(self._read(nodes, grid, wanted))
                group.size = sum(_size(period) for period in group.periods.values())
            except Exception as error:
                group.error = error
            finally:
                group.done.set()
            with self._lock:
                self._evict()
        group.done.wait()
        if group.error is not None:
            if isinstance(group.error, StoreUnavailable):
                raise StoreUnavailable(str(group.error), group.error.retry_after_s)
            raise group.error
        return group.periods

    def _cached(self, nodes: tuple[Node, ...], grid: Grid, wanted: Wanted) -> tuple[_Group, bool]:
        """The group, and whether this thread has to read it. A group with more figures serves as well."""
        for more in (wanted, Wanted(wanted.memory, True), Wanted(True, wanted.waits), Wanted(True, True)):
            key = (nodes, grid, more)
            if (known := self._groups.get(key)) is not None and known.error is None:
                self._groups.move_to_end(key)
                return known, False
        self._groups[(nodes, grid, wanted)] = group = _Group()
        return group, True

    def _evict(self) -> None:
        """Drop failed groups, and the oldest ones that do not fit."""
        for key in [key for key, group in self._groups.items() if group.error is not None]:
            del self._groups[key]
        size = sum(group.size for group in self._groups.values())
        for key, group in list(self._groups.items())[:-_LEAST_GROUPS]:
            if size <= _MOST_BYTES:
                break
            if group.done.is_set():
                size -= group.size
                del self._groups[key]

    def _read(self, nodes: Sequence[Node], grid: Grid, wanted: Wanted) -> Iterator[tuple[str, Period]]:
        before = lookback_points(grid.step_s)
        whole = Grid(grid.first_s - before * grid.step_s, grid.points + before, grid.step_s)
        for node, (series, of_domains) in zip(nodes, self._reader.read(nodes, whole, wanted), strict=True):
            rows = node_rows(whole, series)
            domains = domain_rows(whole, of_domains, rows.fields["cpu"], rows.fields["mem"])
            agreed = compare(rows, domains, self._agreed_before(node.name, grid, wanted))
            self._keep_agreed(node.name, grid, wanted, agreed)
            add_bookings(rows, domains)
            # The first point shows scrapes of the step before it.
            yield node.name, build_period(rows, domains, (grid.first_s - grid.step_s) * 1000, grid.last_s * 1000 + 1)

    def _agreed_before(self, name: str, grid: Grid, wanted: Wanted) -> Agreed | None:
        """What the node and its domains used at the end of the read before; None when that is too long ago."""
        with self._lock:
            reads = self._agreed[name].get((grid.points, wanted), []) if name in self._agreed else []
            ended = [read for read in reads if 0 <= grid.first_s - read[0].last_s <= _AGREED_S]
        return max(ended, key=lambda read: read[0].last_s)[1] if ended else None

    def _keep_agreed(self, name: str, grid: Grid, wanted: Wanted, agreed: Agreed) -> None:
        """Keep it for the next read of the same length: looks at the last minutes overlap those of slices."""
        with self._lock:
            lengths = self._agreed.setdefault(name, {})
            reads = lengths.setdefault((grid.points, wanted), [])
            reads[:] = [*(read for read in reads if read[0] != grid), (grid, agreed)][-_AGREED_READS:]
            if len(lengths) > _AGREED_LENGTHS:
                del lengths[min(lengths)]


def _grid(start_ms: int, end_ms: int, step_s: int) -> Grid:
    """The multiples of a step at which the scrapes of a period are the newest ones: the last may be after its end."""
    first, last = (math.ceil(time_ms / 1000 / step_s) for time_ms in (start_ms, end_ms - 1))
    return Grid(first * step_s, max(0, last + 1 - first), step_s)


def _no_samples() -> Samples:
    return Samples(np.empty(0, dtype=np.int64), {})


def _select(period: Period, fields: Collection[str], *, domains: bool) -> Period:
    def chosen(samples: Samples) -> Samples:
        missing = np.full(samples.time_ms.size, np.nan)
        return Samples(samples.time_ms, {name: samples.fields.get(name, missing) for name in fields})

    return Period(chosen(period.node), {name: chosen(of) for name, of in period.domains.items()} if domains else {})


def _cut(period: Period, start_ms: int, end_ms: int) -> Period:
    """The samples of a period, its end excluded."""

    def cut(samples: Samples) -> Samples:
        first, last = np.searchsorted(samples.time_ms, [start_ms, end_ms]).tolist()
        if last - first == samples.time_ms.size:
            return samples
        return Samples(samples.time_ms[first:last], {name: of[first:last] for name, of in samples.fields.items()})

    domains = {name: cut(of) for name, of in period.domains.items()}
    return Period(cut(period.node), {name: of for name, of in domains.items() if of.time_ms.size})


def _fields_at(samples: Samples, at: int) -> dict[str, float]:
    values = {name: float(values[at]) for name, values in samples.fields.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _size(period: Period) -> int:
    arrays = [period.node, *period.domains.values()]
    return sum(samples.time_ms.nbytes + sum(of.nbytes for of in samples.fields.values()) for samples in arrays)
