"""The optional lists of a trace that hold how long was waited: in any form, they lower no demand below the usage."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.contention import ContentionSettings, Level, measure
from model.nodemodel import ModelSettings
from model.replay.replay import Replay
from model.replay.trace import TraceError, parse_trace
from model.slices import CPU, MEMORY, Slice
from model.stability import mean_predictor
from tests.conftest import TraceObject, build_trace

NAN = math.nan
DETECTORS = {"cpu": mean_predictor, "mem": mean_predictor}
VM_LISTS = ("cpu_demand", "cpu_wait", "cpu_wait_share")
NODE_LISTS = ("psi_cpu", "psi_memory", "swap_in", "oom_kills")


def slices_of(trace: Any) -> list[Slice]:
    return list(parse_trace(json.dumps(trace).encode()).slices())


def first_slice(trace: TraceObject, node: dict[str, Any] | None = None, **vms: dict[str, Any]) -> Slice:
    """The first slice of a trace to which lists are added; the node uses 1, 2, 3 and VM a 0.5, 0.6, 0.7 cores."""
    trace["node"]["raw_data"][0] |= node or {}
    for name, lists in vms.items():
        trace["vm"][name]["raw_data"][0] |= lists
    return slices_of(trace)[0]


def same(values: Any, expected: Any) -> None:
    np.testing.assert_array_equal(values, expected)


# --- demand -------------------------------------------------------------------------------------------


def test_trace_without_the_lists_is_read_as_before(trace_object: TraceObject) -> None:
    for finished in slices_of(trace_object):
        assert (finished.waits, finished.cpu.node_demand, finished.cpu.vm_demand) == (None, None, None)
        assert finished.cpu.demand is finished.cpu


def test_demand_is_that_of_the_trace(trace_object: TraceObject) -> None:
    finished = first_slice(trace_object, {"cpu_demand": [2, 3, 4]}, a={"cpu_demand": [1, 2, 3]})
    same(finished.cpu.node_demand, [2, 3, 4])
    # A VM without that list wants what it uses.
    same(finished.cpu.vm_demand, [[1, 2, 3], [0.1, 0.2, 0.3]])
    same(finished.cpu.node, [1, 2, 3])
    same(finished.cpu.vm_usage[0], [0.5, 0.6, 0.7])
    assert (finished.mem.node_demand, finished.mem.vm_demand) == (None, None)


def test_demand_of_the_node_alone_leaves_its_vms_as_they_are(trace_object: TraceObject) -> None:
    finished = first_slice(trace_object, {"cpu_demand": [2, 3, 4]})
    assert finished.cpu.vm_demand is None
    same(finished.cpu.demand.vm_usage, finished.cpu.vm_usage)
    of_vm = first_slice(build_trace(), a={"cpu_demand": [2, 3, 4]})
    assert of_vm.cpu.node_demand is None
    same(of_vm.cpu.demand.node, of_vm.cpu.node)


def test_demand_follows_from_usage_and_wait(trace_object: TraceObject) -> None:
    finished = first_slice(trace_object, {"cpu_wait": [1, 0, 2]}, a={"cpu_wait": [0.5, None, 1]})
    same(finished.cpu.node_demand, [2, 2, 5])
    same(finished.cpu.vm_demand[0], [1.0, 0.6, 1.7])  # type: ignore[index]
    # The demand itself takes precedence.
    both = first_slice(build_trace(), {"cpu_wait": [1, 0, 2], "cpu_demand": [9, 9, 9]})
    same(both.cpu.node_demand, [9, 9, 9])


def test_demand_is_at_least_the_usage(trace_object: TraceObject) -> None:
    finished = first_slice(trace_object, {"cpu_demand": [0.5, None, -7]}, a={"cpu_demand": [None, 0, 3]})
    same(finished.cpu.node_demand, [1, 2, 3])
    same(finished.cpu.vm_demand[0], [0.5, 0.6, 3])  # type: ignore[index]
    negative = first_slice(build_trace(), {"cpu_wait": [-1, -1, 5]}, a={"cpu_wait": [-1, NAN, None]})
    same(negative.cpu.node_demand, [1, 2, 8])
    assert negative.cpu.vm_demand is None


def test_demand_at_samples_without_usage_does_not_count(trace_object: TraceObject) -> None:
    finished = first_slice(
        trace_object,
        {"cpu_usage": [1, None, 3], "cpu_demand": [4, 5, 6]},
        a={"cpu_usage": [None, 0.6, 0.7], "cpu_demand": [0.1, 0.8, 0.9]},
    )
    same(finished.cpu.node_demand, [4, 6])
    same(finished.cpu.vm_demand[0], [NAN, 0.8, 0.9])  # type: ignore[index]


@pytest.mark.parametrize("values", [None, [], [None], [5.0], [5.0, 5.0], [5.0] * 4, [None] * 3, [NAN] * 3])
@pytest.mark.parametrize("name", ["cpu_wait", "cpu_demand"])
def test_lists_of_another_length_or_without_values_change_no_demand(
    trace_object: TraceObject, name: str, values: Any
) -> None:
    finished = first_slice(trace_object, {name: values}, a={name: values})
    same(finished.cpu.demand.node, [1, 2, 3])
    same(finished.cpu.demand.vm_usage[0], [0.5, 0.6, 0.7])
    assert finished.waits is None


def test_shares_of_a_vm_become_cores(trace_object: TraceObject) -> None:
    """Demand is in the unit of the usage; waits are in cores."""
    trace_object["config"]["vm_cpu_unit"] = "share"
    finished = first_slice(trace_object, a={"cpu_demand": [0.6, 0.7, 0.8]}, b={"cpu_wait": [1, 1, 1]})
    same(finished.cpu.vm_demand, [[2.4, 2.8, 3.2], [1.2, 1.4, 1.6]])


# --- waits --------------------------------------------------------------------------------------------


def test_waits_are_those_of_the_trace(trace_object: TraceObject) -> None:
    finished = first_slice(
        trace_object,
        {"psi_cpu": [0.1, None], "oom_kills": [1]},
        b={"cpu_wait": [0.5, 1, 1.5], "cpu_wait_share": [0.1, None, 0.3]},
    )
    assert finished.waits is not None
    same(finished.waits.vm_share, [[NAN] * 3, [0.1, NAN, 0.3]])
    same(finished.waits.vm_wait, [[NAN] * 3, [0.5, 1, 1.5]])
    assert {name: finished.waits.node(name).tolist() for name in NODE_LISTS} == {
        **{"psi_cpu": [0.1], "oom_kills": [1.0]},
        **{"psi_memory": [], "swap_in": []},
    }


def test_impossible_waits_are_unknown(trace_object: TraceObject) -> None:
    finished = first_slice(
        trace_object,
        {name: [-1, 2, NAN] for name in NODE_LISTS},
        a={"cpu_wait": [-1, 1, math.inf], "cpu_wait_share": [-0.1, 1.1, 1]},
    )
    assert finished.waits is not None
    same(finished.waits.vm_share[0], [NAN, NAN, 1])
    same(finished.waits.vm_wait[0], [NAN, 1, NAN])
    assert [finished.waits.node(name).tolist() for name in NODE_LISTS] == [[2.0]] * 4


@pytest.mark.parametrize("amounts", [{}, {"cpu_wait": None}, {"cpu_wait": [1.0]}, {"cpu_wait": [None] * 3}])
def test_share_counts_without_an_amount(trace_object: TraceObject, amounts: dict[str, Any]) -> None:
    trace_object["node"]["raw_data"][0]["cpu_usage"] = [16, 16, 16]
    finished = first_slice(trace_object, a={"cpu_wait_share": [0.5, 0.5, 0.5], **amounts})
    assert finished.waits is not None
    same(finished.waits.vm_wait, np.full((2, 3), NAN))
    found = measure(CPU, finished, ContentionSettings()).contention
    assert (found.level, dict(found.vms)) == (Level.HIGH, {"a": 0.5})


def test_shares_of_any_length_are_rows_of_their_vms(trace_object: TraceObject) -> None:
    finished = first_slice(
        trace_object, a={"cpu_wait_share": [0.5]}, b={"cpu_wait_share": [0.1] * 5, "cpu_wait": [1] * 5}
    )
    assert finished.waits is not None
    same(finished.waits.vm_share, [[0.5, *[NAN] * 4], [0.1] * 5])
    same(finished.waits.vm_wait, [[NAN] * 5, [1] * 5])


def test_node_without_vms_shows_its_own_figures() -> None:
    trace = build_trace()
    del trace["vm"]
    trace["node"]["raw_data"][1] |= {"swap_in": [500, 500, 500], "cpu_wait": [1, 1, 1]}
    finished = slices_of(trace)[1]
    assert measure(MEMORY, finished, ContentionSettings()).contention.pressure == {"swap_in": 500.0}
    same(finished.cpu.node_demand, [3, 3, 4])


def test_waits_are_those_of_the_vms_that_are_present(trace_object: TraceObject) -> None:
    raw = trace_object["vm"]["a"]["raw_data"]
    raw[0] |= {"cpu_wait_share": [1.0] * 3, "cpu_wait": [1.0] * 3, "cpu_demand": [4.0] * 3}
    trace_object["node"]["raw_data"][0]["vm"] = ["b"]
    raw[2] = {"cpu_wait_share": [1.0] * 3, "cpu_wait": [1.0] * 3}  # it has no sample, and no size
    slices = slices_of(trace_object)
    assert [(slices[k].vms, slices[k].waits, slices[k].cpu.vm_demand) for k in (0, 2)] == [(("b",), None, None)] * 2


def test_vm_that_repeats_its_slice_has_left_whatever_it_waited(trace_object: TraceObject) -> None:
    raw = trace_object["vm"]["b"]["raw_data"]
    raw[2] = raw[1] | {"cpu_wait_share": [1.0] * 3}
    assert slices_of(trace_object)[2].vms == ("a",)


# --- faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu_demand", "cpu_wait", "cpu_wait_share", *NODE_LISTS])
@pytest.mark.parametrize("place", ["node", "vm.a"])
@pytest.mark.parametrize(
    ("values", "text"),
    [
        (5, ": expected a list of numbers, got int"),
        ("lots", ": expected a list of numbers, got str"),
        ({"x": 1}, ": expected a list of numbers, got object"),
        ([1, "2"], "[1]: expected a number or null, got str"),
        ([True], "[0]: expected a number or null, got bool"),
        ([1, [2]], "[1]: expected a number or null, got array"),
        ([1, 1e300], ": 1e+300 exceeds any machine"),
        ([-1e300], ": 1e+300 exceeds any machine"),
    ],
)
def test_fault_is_reported_with_its_place(
    trace_object: TraceObject, name: str, place: str, values: Any, text: str
) -> None:
    """Also that of a list which is not used there: it is not silently another figure."""
    raw = trace_object["node"] if place == "node" else trace_object["vm"]["a"]
    raw["raw_data"][3][name] = values
    with pytest.raises(TraceError) as raised:
        slices_of(trace_object)
    assert str(raised.value) == f"{place}.raw_data[3].{name}{text}"


# --- figures ------------------------------------------------------------------------------------------


def published(trace: TraceObject, *strategies: str, guarded: bool) -> dict[tuple[str, str], list[float]]:
    replay = Replay(parse_trace(json.dumps(trace).encode()), ModelSettings(1, strategies, guarded=guarded), DETECTORS)
    return {key: history.published.tolist() for key, history in replay.run().recorder.histories(3).items()}


numbers = st.one_of(st.none(), st.floats(-2, 30), st.sampled_from([0.0, NAN, math.inf, -math.inf, 1e15]))
values = st.one_of(st.none(), st.lists(numbers, max_size=5), st.lists(numbers, min_size=3, max_size=3))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 5), st.sampled_from(["node", "a", "b"]), st.sampled_from((*VM_LISTS, *NODE_LISTS)), values
        ),
        max_size=12,
    )
)
def test_lists_of_any_content_raise_no_figure(damages: list[tuple[int, str, str, Any]]) -> None:
    trace, names = build_trace(), ("nsigma", "rclike", "percentile")
    plain = published(trace, *names, guarded=True)
    assert min(figures[-1] for figures in plain.values()) > 0.0
    for k, place, name, content in damages:
        raw = trace["node"] if place == "node" else trace["vm"][place]
        raw["raw_data"][k][name] = content
    for key, figures in published(trace, *names, guarded=True).items():
        assert all(one <= other for one, other in zip(figures, plain[key], strict=True)), key
    # Without guards, contention changes no figure of a strategy that uses plain usage.
    bare = published(trace, *names, guarded=False)
    assert bare == published(build_trace(), *names, guarded=False)
