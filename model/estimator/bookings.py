"""Which VMs a slice books, which of them are alive at its end, and why their allocations do not count."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from ..numerics import BoolArray, FloatArray
from ..samples import LastConfig, Samples, SampleTable, row_of
from ..slices import CPU, LARGEST, RESOURCES

#: The allocations of a VM, in the order of the resources.
CONFIG_FIELDS = ("cpu", "mem")

#: Rounding of sums of allocations.
_SUM_TOLERANCE = 1e-3

#: vCPUs and memory of each VM.
_Configs = dict[str, tuple[float, float]]

_UNKNOWN = (math.nan, math.nan)


@dataclass(slots=True)
class LastConfigs:
    """The last known configurations: cores or vCPUs, and MB; NaN where none is known.

    Attributes
    ----------
    node : tuple of two floats
    vms : dict of name to tuple of two floats
        Only of the VMs of the last slice in which they were known: a VM that returns later may be a different one.
    booked_s : tuple of two floats
        When the allocations of all VMs were known last, Unix seconds.
    interval_s : float
        The usual time between two samples of the node; 0 when it is not known yet.
    alive : frozenset of str, optional
        The VMs that were alive when they were known last; None, in an older checkpoint: all of ``vms``.
    sums : tuple of two floats
        The last known sums of the allocations of all VMs; NaN when they are older than VMs are held.
    """

    node: tuple[float, float] = _UNKNOWN
    vms: dict[str, tuple[float, float]] = field(default_factory=dict)
    booked_s: tuple[float, float] = (0.0, 0.0)
    interval_s: float = 0.0
    alive: frozenset[str] | None = None
    sums: tuple[float, float] = _UNKNOWN

    def copy(self) -> LastConfigs:
        """An independent copy."""
        return replace(self, vms=dict(self.vms))


class Bookings(NamedTuple):
    """The VMs of a slice.

    Attributes
    ----------
    names : tuple of v str
        Those that were present, sorted.
    sizes : (2, v) float64
        Their vCPUs and MB; NaN where one is unknown.
    alive : (v,) bool
        Which of them are alive at the end of the slice.
    problems : list of str
        Why the allocations do not count, by resource; empty where they do.
    """

    names: tuple[str, ...]
    sizes: FloatArray
    alive: BoolArray
    problems: list[str]


class ConfigTable(Mapping[str, LastConfig]):
    """Configurations of several domains that were all reported at the same time.

    Parameters
    ----------
    names : tuple of v str
        Sorted.
    sizes : (2, v) float64
        ``cpu`` and ``mem``, without NaN.
    time_ms : int
        Unix milliseconds.
    """

    __slots__ = ("names", "sizes", "time_ms")

    def __init__(self, names: tuple[str, ...], sizes: FloatArray, time_ms: int) -> None:
        self.names = names
        self.sizes = sizes
        self.time_ms = time_ms

    def __getitem__(self, name: str) -> LastConfig:
        at = row_of(self.names, name)
        return LastConfig(dict(zip(CONFIG_FIELDS, self.sizes[:, at].tolist(), strict=True)), self.time_ms)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class UsualBookings:
    """The bookings of the last slice of a node, which apply to the next one in which nothing has changed.

    Most slices are like the one before them, and to look at each VM again takes most of the time.
    """

    def __init__(self) -> None:
        self._last: tuple[LastConfigs, ConfigTable, list[float], Bookings] | None = None

    def note(
        self, known: LastConfigs, vms: Mapping[str, LastConfig], totals: list[_Total | None], bookings: Bookings
    ) -> None:
        """Note the bookings of a slice, and what is known after it."""
        self._last = None
        if not isinstance(vms, ConfigTable) or not _are_of(totals, vms):
            return
        if vms.names == bookings.names and bookings.alive.all() and not any(bookings.problems):
            self._last = replace(known), vms, _amounts(totals), bookings

    def apply(
        self, known: LastConfigs, vms: Mapping[str, LastConfig], totals: list[_Total | None], end_s: float
    ) -> Bookings | None:
        """The bookings of a slice in which nothing has changed, after which ``known`` is updated; otherwise None."""
        if self._last is None or not isinstance(vms, ConfigTable) or not _are_of(totals, vms):
            return None
        before, usual, amounts, bookings = self._last
        if known.sums != before.sums or known.alive != before.alive or known.vms != before.vms:
            return None
        if amounts != _amounts(totals) or vms.names != usual.names or not np.array_equal(vms.sizes, usual.sizes):
            return None
        known.booked_s = (end_s, end_s)
        return bookings


def _are_of(totals: Sequence[_Total | None], vms: ConfigTable) -> bool:
    """Whether the sums and the VMs are those of the last sample of the node."""
    return all(total is not None and total.is_latest and total.time_ms == vms.time_ms for total in totals)


def _amounts(totals: Sequence[_Total | None]) -> list[float]:
    return [math.nan if total is None else total.amount for total in totals]


def last_configs(domains: Mapping[str, Samples]) -> Mapping[str, LastConfig]:
    """The last ``cpu`` and ``mem`` of each domain that has one, as :meth:`~model.store.base.Store.last_configs`."""
    if isinstance(domains, SampleTable) and domains.time_ms.size:
        sizes = np.array([domains.fields[field][:, -1] for field in CONFIG_FIELDS])
        if not np.isnan(sizes).any():
            return ConfigTable(domains.names, sizes, int(domains.time_ms[-1]))
    configs = {}
    for name, samples in domains.items():
        last = {key: at for key in CONFIG_FIELDS if (at := _last_known(samples.fields[key])) is not None}
        if last:
            fields = {key: float(samples.fields[key][at]) for key, at in last.items()}
            configs[name] = LastConfig(fields, int(samples.time_ms[max(last.values())]))
    return configs


def book_vms(
    known: LastConfigs,
    node: Samples,
    vms: Mapping[str, LastConfig],
    end_s: float,
    hold_s: float,
    usual: UsualBookings | None = None,
) -> Bookings:
    """Find the VMs of a slice; ``known`` is updated.

    Parameters
    ----------
    known : LastConfigs
    node : Samples
        With ``cpu``, ``mem``, ``oc_cpu`` and ``oc_mem``.
    vms : mapping of name to LastConfig
    end_s : float
        The end of the slice, Unix seconds.
    hold_s : float
        For how long the last known VMs count after they became unknown.
    usual : UsualBookings, optional
        Of the slice before.
    """
    totals = [_last_total(node, i) for i in range(len(CONFIG_FIELDS))]
    if usual is not None and (same := usual.apply(known, vms, totals, end_s)) is not None:
        return same
    reported = dict(_reported(vms))
    alive_before = known.alive if known.alive is not None else frozenset(known.vms)
    configs = _present_vms(known, totals, reported) if node.time_ms.size else {}
    problems = _unknown_bookings(known, totals, configs, end_s, hold_s)
    alive = set(_alive_vms(configs, {name: vms[name].time_ms for name in reported}, totals, known.sums, alive_before))
    if node.time_ms.size:
        known.alive = frozenset(alive)
    if all(end_s - booked_s > hold_s for booked_s in known.booked_s):
        known.vms = {}
    sizes = np.array(list(configs.values()), dtype=np.float64).reshape(len(configs), len(CONFIG_FIELDS)).T
    bookings = Bookings(tuple(configs), sizes, np.array([name in alive for name in configs], dtype=bool), problems)
    if usual is not None:
        usual.note(known, vms, totals, bookings)
    return bookings


def _reported(vms: Mapping[str, LastConfig]) -> Iterator[tuple[str, list[float]]]:
    for name, last in sorted(vms.items()):
        values = [_valid_vm_config(last.fields.get(key, math.nan)) for key in CONFIG_FIELDS]
        if not all(math.isnan(value) for value in values):
            yield name, values


def _present_vms(
    known: LastConfigs, totals: Sequence[_Total | None], reported: Mapping[str, Sequence[float]]
) -> _Configs:
    """The configurations of the VMs of a slice.

    The sum of all allocations is stored with the node; it is missing while the VMs or one allocation are unknown.
    Unless the VMs of the slice add up to it, those of the slice before are counted as well.
    """
    present = {name: merge(known.vms.get(name, _UNKNOWN), values) for name, values in reported.items()}
    if any(total is not None and _add_up(present, i, total) for i, total in enumerate(totals)):
        known.vms = present
        return dict(present)
    return dict(sorted({**known.vms, **present}.items()))


def _unknown_bookings(
    known: LastConfigs, totals: Sequence[_Total | None], vms: _Configs, end_s: float, hold_s: float
) -> list[str]:
    """Why the allocations of the VMs do not count, by resource; empty where they do."""
    problems, booked_s, sums = [], list(known.booked_s), list(known.sums)
    for i, total in enumerate(totals):
        if total is not None:
            sums[i] = total.amount
        if total is not None and not _add_up(vms, i, total):
            problems.append("the store lacks the allocations of some of its VMs")
            continue
        if total is not None:
            booked_s[i] = end_s if total.is_latest else total.time_ms / 1000
        age_s = end_s - booked_s[i]
        if age_s <= hold_s:
            problems.append("")
        else:
            since = f" for {age_s:.0f} s" if booked_s[i] else ""
            problems.append(f"the allocations of its VMs are unknown{since}")
            sums[i] = math.nan
    known.booked_s, known.sums = (booked_s[0], booked_s[1]), (sums[0], sums[1])
    return problems


def _alive_vms(
    vms: _Configs,
    seen_ms: Mapping[str, int],
    totals: Sequence[_Total | None],
    sums: Sequence[float],
    alive_before: frozenset[str],
) -> Iterator[str]:
    """The VMs that are alive at the last moment of the slice in which the VMs of the node are known.

    The samples of VMs have the time of the node's sample of the same scrape, so a VM that is missing at that moment has
    left. VMs without any sample in the slice are held as they were before. Together they have at most the last known
    sums: more booked now is a larger capacity, so a VM that nothing confirms must not raise it.
    """
    known_ms = max([total.time_ms for total in totals if total is not None] + list(seen_ms.values()), default=None)
    seen = [name for name in vms if name in seen_ms and seen_ms[name] == known_ms]
    held = [name for name in vms if name not in seen_ms and name in alive_before]
    # The sums are older than a VM that appeared after them.
    seen.sort(key=lambda name: name not in alive_before)
    booked = [0.0, 0.0]
    for name in seen + held:
        after = [amount + (0.0 if math.isnan(more) else more) for amount, more in zip(booked, vms[name], strict=True)]
        if not any(amount > most * (1 + _SUM_TOLERANCE) for amount, most in zip(after, sums, strict=True)):
            booked = after
            yield name


class _Total(NamedTuple):
    """The sum of the allocations of all VMs, cores or MB, when it was known last."""

    amount: float
    time_ms: int
    is_latest: bool


def _last_total(node: Samples, i: int) -> _Total | None:
    name = CONFIG_FIELDS[i]
    totals = node.fields[f"oc_{name}"] * node.fields[name]
    at = _last_known(totals)
    if at is None:
        return None
    return _Total(float(totals[at]), int(node.time_ms[at]), at == totals.size - 1)


def _add_up(vms: _Configs, i: int, total: _Total) -> bool:
    """Whether the VMs have at least the sum of all allocations."""
    known = sum(config[i] for config in vms.values() if not math.isnan(config[i]))
    return total.amount <= known + _SUM_TOLERANCE * total.amount


def _last_known(values: FloatArray) -> int | None:
    """The index of the last value; None when all are missing."""
    if values.size and not math.isnan(values[-1]):
        return int(values.size - 1)
    (at,) = np.nonzero(~np.isnan(values))
    return int(at[-1]) if at.size else None


def _valid_vm_config(value: float) -> float:
    return value if 0 <= value <= LARGEST else math.nan


def merge(before: tuple[float, float], new: Sequence[float]) -> tuple[float, float]:
    """New configurations, with those before in place of unknown ones."""
    cpu, mem = (old if math.isnan(value) else value for old, value in zip(before, new, strict=True))
    return cpu, mem


assert RESOURCES[0] is CPU  # noqa: S101  # CONFIG_FIELDS and LastConfigs have this order
