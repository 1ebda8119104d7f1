"""How long the VMs of a node waited, from stored samples: at which samples, how often they count, and what is unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contention import ContentionSettings, Level, measure
from model.estimator.bookings import LastConfigs
from model.estimator.coverage import SliceCoverage, valid_levels
from model.estimator.slicing import Calendar, SliceReader, SliceRules, build_slice
from model.estimator.waiting import NODE_WAIT_FIELDS, waiting_of, waits_of
from model.samples import LastConfig, Samples
from model.slices import CPU, MEMORY, Slice
from model.store.sqlite import SqliteStore
from tests.unit.estimator.support import FIRST, NODES, SLICE_S, write_slice

NAN = math.nan
DEFAULTS = ContentionSettings()
#: Eight scrapes of a slice of 80 seconds.
TIMES = tuple(range(10_000, 90_000, 10_000))


def samples(times: Sequence[int] = TIMES, **fields: Sequence[float] | float) -> Samples:
    """Samples with these fields; those that a slice needs are unknown by default."""
    size = len(times)
    values = {name: np.broadcast_to(np.array(one, dtype=float), size).copy() for name, one in fields.items()}
    needed = ("cpu", "mem", "cpu_usage", "mem_usage", "elapsed_time", "oc_cpu", "oc_mem", "cpu_wait", "cpu_wait_share")
    return Samples(np.array(times), {name: np.full(size, NAN) for name in needed} | values)


def coverage_of(node: Samples) -> SliceCoverage:
    return SliceCoverage(node, 0, 80_001, 4)


def same(values: object, expected: object) -> None:
    np.testing.assert_array_equal(values, expected)


# --- waits --------------------------------------------------------------------------------------------


def test_nothing_measured_is_none() -> None:
    node = samples(psi_cpu=NAN)
    assert waits_of(node, []) is None
    assert waits_of(node, [None, samples(), samples([])]) is None
    # An amount without a share shows no level.
    assert waits_of(node, [samples(cpu_wait=1.0)]) is None
    waiting = waiting_of(coverage_of(node), node, ["a"], None)
    assert waiting.waits is None
    assert np.isnan(waiting.on_node).all()  # type: ignore[arg-type]


def test_rows_are_in_the_order_of_the_vms() -> None:
    short = samples(TIMES[:2], cpu_wait=[1, 2], cpu_wait_share=[0.1, 0.2])
    waits = waits_of(samples(), [None, short, samples(), samples(cpu_wait=0.5, cpu_wait_share=0.4)])
    assert waits is not None
    same(waits.vm_share, [[NAN] * 8, [0.1, 0.2, *[NAN] * 6], [NAN] * 8, [0.4] * 8])
    same(waits.vm_wait, [[NAN] * 8, [1, 2, *[NAN] * 6], [NAN] * 8, [0.5] * 8])
    assert waits.of_node == {}


def test_impossible_values_are_unknown() -> None:
    wrong = [-0.1, 1.1, math.inf, -math.inf, NAN, 0.0, 1.0, 0.5]
    waits = waits_of(samples(), [samples(cpu_wait=[-1, 1e300, math.inf, 1e15, NAN, 0, 1, 2], cpu_wait_share=wrong)])
    assert waits is not None
    same(waits.vm_share, [[NAN] * 5 + [0.0, 1.0, 0.5]])
    same(waits.vm_wait, [[NAN, NAN, NAN, 1e15, NAN, 0, 1, 2]])
    same(valid_levels(np.array([-1e-9, 0, 1e15, 1.1e15, NAN])), [NAN, 0, 1e15, NAN, NAN])


def test_fields_of_the_node_that_have_samples_are_measured() -> None:
    node = samples(psi_cpu=[0.1, NAN, -1, math.inf, 0, 0, 0, 0], swap_in=NAN, oom_kills=0.0)
    waits = waits_of(node, [])
    assert waits is not None
    assert set(waits.of_node) == {"psi_cpu", "oom_kills"}
    assert waits.node("psi_cpu").tolist() == [0.1, 0, 0, 0, 0]
    assert {name: waits.node(name).size for name in NODE_WAIT_FIELDS} == {
        "psi_cpu": 5,
        "psi_memory": 0,
        "swap_in": 0,
        "oom_kills": 8,
    }


# --- on the node --------------------------------------------------------------------------------------


def on_node(vms: Mapping[str, Samples], node: Samples | None = None) -> list[float]:
    node = samples() if node is None else node
    waiting = waiting_of(coverage_of(node), node, sorted(vms), vms).on_node
    return [] if waiting is None else waiting.tolist()


def test_vms_wait_together_at_the_samples_of_the_node() -> None:
    one = samples(cpu_wait=[1] * 8, cpu_wait_share=0.1)
    other = samples(cpu_wait=[0, 1, 2, NAN, -4, math.inf, 6, 7], cpu_wait_share=0.1)
    assert on_node({"a": one, "b": other}) == [1, 2, 3, 1, 1, 1, 7, 8]


def test_vm_at_other_times_counts_where_both_have_a_sample() -> None:
    late = samples([10_001, 20_000, 40_000, 95_000], cpu_wait=[1, 2, 4, 9], cpu_wait_share=0.1)
    assert on_node({"a": late}) == [0, 2, 0, 4, 0, 0, 0, 0]
    assert on_node({"a": late, "b": samples([], cpu_wait=[], cpu_wait_share=[])}) == [0, 2, 0, 4, 0, 0, 0, 0]
    never = samples([5, 6], cpu_wait=1.0, cpu_wait_share=0.1)
    assert on_node({"a": never}) == [0] * 8
    assert on_node({"a": never}, samples([])) == []


def test_tasks_of_the_node_count_where_no_vm_has_figures() -> None:
    node = samples(cpu_wait=[3] * 8)
    assert on_node({"a": samples()}, node) == on_node({}, node) == [3] * 8
    # With figures of all VMs, those of all tasks, emulators and host included, do not count.
    assert on_node({"a": samples(cpu_wait=1.0, cpu_wait_share=0.1)}, node) == [1] * 8


def test_vms_without_figures_wait_at_most_as_long_as_the_tasks_of_the_node() -> None:
    """Figures of some VMs do not make the others wait less than figures of none of them."""
    node = samples(cpu_wait=[3, 0.5, NAN, -1, math.inf, 3, 3, 3])
    known = samples(cpu_wait=[1, 1, 1, 1, 1, 1, NAN, 5], cpu_wait_share=0.1)
    assert on_node({"a": known, "b": samples()}, node) == [3, 1, 1, 1, 1, 3, 3, 5]
    assert on_node({"a": known, "b": samples()}) == [1, 1, 1, 1, 1, 1, 0, 5]


def test_times_of_the_node_without_a_sample_of_a_vm_are_unknown() -> None:
    coverage = coverage_of(samples())
    same(coverage.at_node_times(samples(cpu_wait=range(8)), "cpu_wait"), range(8))
    same(coverage.at_node_times(samples([10_000, 30_000], cpu_wait=[1, 3]), "cpu_wait"), [1, NAN, 3, *[NAN] * 5])
    same(coverage.at_node_times(samples([9_999, 80_000, 80_001], cpu_wait=[1, 2, 3]), "cpu_wait"), [*[NAN] * 7, 2])
    same(coverage.at_node_times(samples([]), "cpu_wait"), [NAN] * 8)
    same(coverage_of(samples([])).at_node_times(samples([10_000], cpu_wait=1.0), "cpu_wait"), [])


# --- demand -------------------------------------------------------------------------------------------


def test_demand_is_usage_and_wait_at_the_samples_that_count() -> None:
    coverage = coverage_of(samples(elapsed_time=10_000))
    usage = np.array([1, 2, 99, 4, 5, 6, 7, 8.0])  # of 8 cores
    counted = coverage.count_node(CPU, usage, 8.0, np.array([1, NAN, 1, 1, 0, -5, 1e300, math.inf]))
    assert counted.values.tolist() == [1, 2, 4, 5, 6, 7, 8]
    assert counted.demand is not None
    assert counted.demand.tolist() == [2, 2, 5, 5, 6, 7, 8]


@pytest.mark.parametrize("waits", [None, [NAN] * 8, [-1.0] * 8, [math.inf] * 8])
def test_demand_is_unknown_where_no_wait_is_known(waits: Sequence[float] | None) -> None:
    coverage = coverage_of(samples(elapsed_time=10_000))
    array = None if waits is None else np.array(waits)
    assert coverage.count_node(CPU, np.full(8, 2.0), 8.0, array).demand is None
    vm = samples(cpu_usage=2.0, **({} if waits is None else {"cpu_wait": waits}))
    assert coverage.count_vm(CPU, vm).demand is None


def test_demand_counts_as_often_as_the_usage_beside_it() -> None:
    # After the third scrape none for 40 seconds: that rate covers four intervals.
    times = (10_000, 20_000, 30_000, 70_000, 80_000)
    node = samples(times, elapsed_time=[10_000, 10_000, 10_000, 40_000, 10_000], oc_cpu=0.1)
    coverage = coverage_of(node)
    counted = coverage.count_node(CPU, np.array([1, 2, 3, 7, 8.0]), 16.0, np.array([0.5, 0, 0, 1, 2.0]))
    assert counted.values.tolist() == [1, 2, 3, 7, 7, 7, 7, 8]
    assert counted.demand is not None
    assert counted.demand.tolist() == [1.5, 2, 3, 8, 8, 8, 8, 10]
    vm = samples((5, 10_000, 20_000, 30_000, 70_000, 80_000), cpu_usage=[9, 1, 2, 3, 7, 8], cpu_wait=[9, 1, 1, 1, 1, 1])
    counted = coverage.count_vm(CPU, vm)
    assert counted.values.tolist() == [1, 2, 3, 7, 7, 7, 7, 8]
    assert counted.demand is not None
    assert counted.demand.tolist() == [2, 3, 4, 8, 8, 8, 8, 9]


def test_samples_that_do_not_suffice_have_no_demand() -> None:
    counted = coverage_of(samples(elapsed_time=10_000)).count_node(
        CPU, np.array([1.0, *[NAN] * 7]), 8.0, np.full(8, 1.0)
    )
    assert (counted.values.size, counted.demand) == (0, None)
    assert counted.missing


def test_memory_has_no_demand() -> None:
    vm = samples(mem_usage=5.0, cpu_wait=1.0)
    assert coverage_of(samples(elapsed_time=10_000)).count_vm(MEMORY, vm).demand is None


# --- slices -------------------------------------------------------------------------------------------

NODE = {"cpu": 32.0, "mem": 65536.0, "cpu_usage": 4.0, "mem_usage": 8192.0}
VM = {"cpu": 2.0, "mem": 2048.0, "cpu_usage": 1.0, "mem_usage": 512.0}
WAITS = VM | {"cpu_wait": 0.25, "cpu_wait_share": 0.2}


def read(store: SqliteStore, number: int = FIRST, *, with_vm_samples: bool = True) -> Slice:
    reader = SliceReader(store, Calendar(SLICE_S, 3), SliceRules(), with_vm_samples=with_vm_samples)
    return reader.read(NODES[0], number, LastConfigs())


def test_slice_has_what_was_waited(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE | {"psi_memory": 0.3}, {"a": VM, "b": WAITS})
    finished = read(store)
    same(finished.cpu.vm_demand, [[1.0] * 8, [1.25] * 8])
    same(finished.cpu.node_demand, [4.25] * 8)
    assert (finished.mem.vm_demand, finished.mem.node_demand) == (None, None)
    assert measure(CPU, finished, DEFAULTS).contention.level is Level.NONE, "at its quota: one VM at a constant level"
    assert measure(CPU, finished, DEFAULTS).sources == {"b"}
    assert measure(MEMORY, finished, DEFAULTS).contention.pressure == {"psi_memory": 0.3}


def test_slice_of_an_exporter_without_these_figures_is_as_before(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": VM})
    finished = read(store)
    assert (finished.waits, finished.cpu.vm_demand, finished.cpu.node_demand) == (None, None, None)


def test_slice_whose_usage_is_not_confirmed_has_waits_and_no_demand(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE, {"a": WAITS, "b": WAITS}, at=[0, 1])
    finished = read(store)
    assert finished.cpu.missing
    assert finished.cpu.node_demand is None
    assert measure(CPU, finished, DEFAULTS).contention.level is Level.HIGH


def test_slice_that_is_read_without_vms_has_no_waits(store: SqliteStore) -> None:
    write_slice(store, FIRST, NODE | {"psi_memory": 0.3, "cpu_wait": 1.0}, {"a": WAITS})
    finished = read(store, with_vm_samples=False)
    assert (finished.waits, finished.cpu.vm_demand, finished.cpu.node_demand) == (None, None, None)


def test_vm_that_is_held_from_the_slice_before_has_no_figures(store: SqliteStore) -> None:
    unknown = {"oc_cpu": NAN, "oc_mem": NAN}
    write_slice(store, FIRST, NODE, {"a": WAITS, "b": WAITS})
    write_slice(store, FIRST + 1, NODE | unknown, {"b": WAITS})
    reader, known = SliceReader(store, Calendar(SLICE_S, 3), SliceRules(), with_vm_samples=True), LastConfigs()
    slices = [reader.read(NODES[0], number, known) for number in (FIRST, FIRST + 1)]
    assert [one.alive for one in slices] == [("a", "b")] * 2
    assert [measure(CPU, one, DEFAULTS).sources for one in slices] == [{"a", "b"}, {"b"}]


absurd = st.sampled_from([0.0, 0.3, 1.0, -1.0, 1e15, 1e16, 1e300, math.inf, -math.inf, NAN])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(absurd, min_size=8, max_size=8),
    st.lists(absurd, min_size=8, max_size=8),
    st.lists(absurd, min_size=8, max_size=8),
)
def test_absurd_waits_leave_finite_demand_that_is_at_least_the_usage(
    waits: list[float], shares: list[float], of_node: list[float]
) -> None:
    fields = dict.fromkeys(NODE_WAIT_FIELDS, of_node)
    node = samples(
        cpu=32.0,
        mem=65536.0,
        cpu_usage=4.0,
        mem_usage=1.0,
        elapsed_time=10_000,
        oc_cpu=0.25,
        oc_mem=0.25,
        cpu_wait=of_node,
        **fields,
    )
    vm = samples(cpu=8.0, mem=16384.0, cpu_usage=1.0, mem_usage=1.0, cpu_wait=waits, cpu_wait_share=shares)
    configs = {"a": LastConfig({"cpu": 8.0, "mem": 16384.0}, 80_000)}
    finished = build_slice(0, Calendar(80.001, 3), SliceRules(), LastConfigs(), node, configs, {"a": vm})
    assert not finished.cpu.missing
    demand = finished.cpu.demand
    for values in (demand.node - finished.cpu.node, demand.vm_usage - finished.cpu.vm_usage):
        assert (values >= 0).all()
        assert (values <= 1e15).all()
    if finished.waits is not None:
        assert ((finished.waits.vm_share >= 0) | np.isnan(finished.waits.vm_share)).all()
        assert not np.isinf(finished.waits.vm_wait).any()
        assert all(np.isfinite(finished.waits.node(name)).all() for name in NODE_WAIT_FIELDS)
