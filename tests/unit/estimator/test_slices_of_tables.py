"""Slices of domains that are read as a table, against those of each domain alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from model.estimator.bookings import (
    CONFIG_FIELDS,
    Bookings,
    ConfigTable,
    LastConfigs,
    UsualBookings,
    book_vms,
    last_configs,
)
from model.estimator.slicing import Calendar, SliceRules, build_slice
from model.numerics import FloatArray
from model.samples import DomainHistory, Period, Samples, SampleTable
from model.slices import Slice, Usage

SLICE_S, SCRAPES, SLICES = 120, 12, 20
CALENDAR, RULES = Calendar(SLICE_S, 3), SliceRules(vm_hold_s=3 * SLICE_S)
NODE_SIZE = (16.0, 65_536.0)


def random_period(seed: int) -> Period:
    """A node whose scrapes fail at times, and VMs that come, leave, are resized, and lack figures."""
    rng = np.random.default_rng(seed)
    times = np.arange(SLICES * SCRAPES, dtype=np.int64) * (SLICE_S * 1000 // SCRAPES) + 1
    times = times[rng.random(times.size) > rng.choice([0.0, 0.02, 0.2])]
    n, booked = times.size, np.zeros((2, times.size))
    domains = {}
    for i in range(int(rng.integers(0, 7))):
        life = [0, n] if rng.random() < 0.6 else sorted(rng.integers(0, n + 1, 2).tolist())
        own = np.arange(*life)
        if rng.random() < 0.2:
            own = own[rng.random(own.size) > 0.1]
        if not own.size:
            continue
        sizes = np.array([[float(rng.integers(1, 5))], [float(rng.integers(1, 9)) * 1024]]) * np.ones((1, own.size))
        if rng.random() < 0.3:
            sizes[:, own.size // 2 :] *= 2
        booked[:, own] += sizes
        usage = rng.random((2, own.size)) * sizes
        for row in usage:
            row[rng.random(own.size) < rng.choice([0.0, 0.0, 0.05, 1.0])] = np.nan
        if rng.random() < 0.2:
            sizes[rng.integers(2), rng.random(own.size) < 0.3] = np.nan
        fields = dict(zip((*CONFIG_FIELDS, "cpu_usage", "mem_usage"), (*sizes, *usage), strict=True))
        if rng.random() < 0.3:
            fields |= {"cpu_wait": rng.random(own.size), "cpu_wait_share": rng.random(own.size) / 5}
        domains[f"vm{i}"] = Samples(times[own], fields)
    known = rng.random(n) > rng.choice([0.0, 0.05])
    node: dict[str, FloatArray] = {
        "cpu": np.full(n, NODE_SIZE[0]),
        "mem": np.full(n, NODE_SIZE[1]),
        "cpu_usage": rng.random(n) * NODE_SIZE[0],
        "mem_usage": rng.random(n) * NODE_SIZE[1],
        "elapsed_time": np.diff(times, prepend=times[:1] - 10_000).astype(float),
        "oc_cpu": np.where(known, booked[0] / NODE_SIZE[0], np.nan),
        "oc_mem": np.where(known, booked[1] / NODE_SIZE[1], np.nan),
    }
    return Period(Samples(times, node), domains)


def slices(period: Period, *, as_table: bool, known: LastConfigs) -> Iterator[Slice]:
    history, usual = DomainHistory.of(period), UsualBookings() if as_table else None
    assert history is not None
    for number in range(SLICES):
        bounds = CALENDAR.bounds_ms(number)
        start, end = np.searchsorted(period.node.time_ms, bounds).tolist()
        vms = history.part(start, end)
        if not as_table:
            cuts = {name: np.searchsorted(of.time_ms, bounds).tolist() for name, of in period.domains.items()}
            vms = {name: period.domains[name].part(*cut) for name, cut in cuts.items() if cut[0] < cut[1]}
        node = period.node.part(start, end)
        yield build_slice(number, CALENDAR, RULES, known, node, last_configs(vms), vms, usual)


def assert_same(one: Slice, other: Slice) -> None:
    assert (one.vms, one.alive, repr(one.waits)) == (other.vms, other.alive, repr(other.waits))
    for usage, expected in ((one.cpu, other.cpu), (one.mem, other.mem)):
        assert usage.missing == expected.missing
        for name in Usage.__dataclass_fields__:
            if name != "missing":
                np.testing.assert_array_equal(getattr(usage, name), getattr(expected, name), name)


def as_text(known: LastConfigs) -> str:
    """NaN is equal to NaN; the order of a set does not count."""
    return f"{sorted(known.alive or ())} {replace(known, alive=None)}"


@pytest.mark.parametrize("seed", range(40))
def test_table_gives_the_same_slices_and_the_same_knowledge(seed: int) -> None:
    period, known, expected_known = random_period(seed), LastConfigs(), LastConfigs()
    found = slices(period, as_table=True, known=known)
    for one, other in zip(found, slices(period, as_table=False, known=expected_known), strict=True):
        assert_same(one, other)
        assert as_text(known) == as_text(expected_known)


def test_history_of_domains_has_their_samples() -> None:
    period = random_period(1)
    history = DomainHistory.of(period)
    assert history is not None
    assert DomainHistory.of(Period(period.node, history)) is history
    assert list(history) == sorted(period.domains)
    for name, samples in period.domains.items():
        np.testing.assert_array_equal(history[name].time_ms, samples.time_ms)
        for field, values in samples.fields.items():
            np.testing.assert_array_equal(history[name].fields[field], values)
    with pytest.raises(KeyError):
        history["vm"]


def test_domain_with_samples_of_its_own_times_makes_no_table() -> None:
    node = Samples(np.array([1000, 2000]), {})
    for times in ([1500], [2500]):
        assert DomainHistory.of(Period(node, {"a": Samples(np.array(times), {"cpu": np.ones(1)})})) is None


def test_slice_with_a_domain_that_left_is_no_table() -> None:
    node = Samples(np.arange(4), {})
    domains = {"b": Samples(np.arange(4), {"cpu": np.ones(4)}), "a": Samples(np.arange(2), {"cpu": np.ones(2)})}
    history = DomainHistory.of(Period(node, domains))
    assert history is not None
    assert not isinstance(history.part(0, 4), SampleTable)
    both, one = history.part(0, 2), history.part(2, 4)
    assert isinstance(both, SampleTable)
    assert (both.names, both["a"].fields["cpu"].tolist()) == (("a", "b"), [1, 1])
    assert isinstance(one, SampleTable)
    assert (one.names, "a" in one, len(one)) == (("b",), False, 1)


def test_bookings_of_the_slice_before_apply_while_nothing_changes() -> None:
    known, usual = LastConfigs(), UsualBookings()
    sizes = np.array([[2.0, 4.0], [1024.0, 2048.0]])

    def node(cores: float) -> Samples:
        one = {"cpu": 16.0, "mem": 65_536.0, "oc_cpu": cores / 16, "oc_mem": 512 * cores / 65_536}
        return Samples(np.array([60_000]), {name: np.array([value]) for name, value in one.items()})

    def book(cores: float, sizes: FloatArray, end_s: float) -> Bookings:
        return book_vms(known, node(cores), ConfigTable(("a", "b"), sizes, 60_000), end_s, 900.0, usual)

    first = book(6.0, sizes, 60.0)
    assert book(6.0, sizes, 120.0) is first
    assert known.booked_s == (120.0, 120.0)
    more_is_booked = book(7.0, sizes, 180.0)
    assert all(more_is_booked.problems)
    assert known.booked_s == (120.0, 120.0)
    assert book(6.0, sizes, 240.0) is not more_is_booked
    larger = book(12.0, 2 * sizes, 300.0)
    assert larger.sizes.tolist() == (2 * sizes).tolist()
    assert book(12.0, 2 * sizes, 360.0) is larger
    known.vms = {**known.vms, "c": (1.0, 512.0)}
    assert book(12.0, 2 * sizes, 420.0) is not larger
