"""The rule of thinning: what remains of the samples of a step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.samples import ScrapeSample
from model.store.sqlite_blocks import encode_block, thin_rows

NODE = "http://w1:9100/metrics"
T0 = 1_795_000_200_000


def thinned(*samples: ScrapeSample) -> ScrapeSample:
    encoded = [encode_block(sample) for sample in samples]
    layouts = list(dict.fromkeys(layout.to_json() for layout, _ in encoded))
    rows = [
        (sample.time_ms, layouts.index(layout.to_json()), block)
        for sample, (layout, block) in zip(samples, encoded, strict=True)
    ]
    return thin_rows(NODE, rows, {layouts.index(layout.to_json()): layout for layout, _ in encoded})


def node(k: int, **fields: float) -> ScrapeSample:
    return ScrapeSample(NODE, T0 + 15_000 * k, fields, {})


def vms(k: int, **domains: dict[str, float]) -> ScrapeSample:
    return ScrapeSample(NODE, T0 + 15_000 * k, {"oc_cpu": 0.5}, domains)


def test_sample_has_the_time_of_the_last_one() -> None:
    assert thinned(node(0, cpu=4.0), node(3, cpu=4.0)).time_ms == T0 + 45_000


@pytest.mark.parametrize(
    "field", ["cpu_usage", "mem_usage", "cpu_wait", "cpu_wait_share", "psi_cpu", "psi_memory", "swap_in"]
)
def test_usage_and_waits_are_the_largest(field: str) -> None:
    samples = [{field: 0.2}, {field: 0.7}, {}, {field: 0.1}]
    assert thinned(*(node(k, **fields) for k, fields in enumerate(samples))).fields[field] == 0.7
    assert thinned(*(vms(k, a=fields) for k, fields in enumerate(samples))).domains["a"][field] == 0.7


@pytest.mark.parametrize("field", ["elapsed_time", "oom_kills"])
def test_elapsed_time_and_killed_processes_are_sums(field: str) -> None:
    assert thinned(node(0, **{field: 2.0}), node(1), node(2, **{field: 3.0})).fields[field] == 5.0


@pytest.mark.parametrize("field", ["cpu", "mem"])
def test_size_of_a_node_is_the_smallest_that_is_possible(field: str) -> None:
    samples = [node(0, **{field: 64.0}), node(1, **{field: 32.0}), node(2, **{field: 0.0}), node(3, **{field: 64.0})]
    assert thinned(*samples).fields[field] == 32.0


def test_other_fields_have_their_last_value() -> None:
    result = thinned(
        node(0, freq=1.0, vm_number=3.0, oc_cpu=0.9), node(1, freq=2.0, oc_cpu=0.5), node(2, vm_number=2.0)
    )
    assert [result.fields[name] for name in ("freq", "vm_number", "oc_cpu")] == [2.0, 2.0, 0.5]


def test_vm_of_any_sample_remains_with_its_last_allocation() -> None:
    result = thinned(
        vms(0, left={"cpu": 2.0, "mem": 512.0}, stays={"cpu": 1.0, "mem": 100.0}),
        vms(1, stays={"cpu": 4.0}),
        vms(2, stays={"cpu_usage": 0.5}, came={"cpu": 8.0}),
    )
    assert {name: fields.get("cpu") for name, fields in result.domains.items()} == {
        "left": 2.0,
        "stays": 4.0,
        "came": 8.0,
    }
    assert result.domains["stays"]["mem"] == 100.0


def test_samples_are_counted_where_usage_is_known() -> None:
    result = thinned(
        ScrapeSample(NODE, T0, {"cpu_usage": 1.0, "mem_usage": 1.0}, {"a": {"cpu_usage": 1.0, "mem_usage": 9.0}}),
        ScrapeSample(NODE, T0 + 1, {"mem_usage": 1.0}, {"a": {"cpu_usage": 1.0, "mem_usage": -177.0}}),
        ScrapeSample(NODE, T0 + 2, {"mem_usage": 1.0}, {}),
    )
    numbers = ("samples", "cpu_samples", "mem_samples")
    assert [result.fields.get(name) for name in numbers] == [3.0, 1.0, 3.0]
    assert [result.domains["a"].get(name) for name in numbers] == [None, 2.0, 1.0]


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(0, 64), max_size=3), min_size=1, max_size=12))
def test_samples_of_changing_layouts_give_the_same_as_those_of_one(usages: list[dict[str, float]]) -> None:
    """VMs that come and go change the layout; the rule applies to the step as a whole."""
    samples = [
        ScrapeSample(
            NODE,
            T0 + k,
            {"cpu": 64.0, "cpu_usage": sum(usage.values()), "elapsed_time": 1.0},
            {name: {"cpu": 4.0 + k, "cpu_usage": value} for name, value in usage.items()},
        )
        for k, usage in enumerate(usages)
    ]
    result = thinned(*samples)
    assert result.fields["cpu_usage"] == max(sum(usage.values()) for usage in usages)
    assert result.fields["elapsed_time"] == len(usages)
    assert result.fields["samples"] == len(usages)
    for name in {name for usage in usages for name in usage}:
        at = [k for k, usage in enumerate(usages) if name in usage]
        assert result.domains[name] == {
            "cpu": 4.0 + at[-1],
            "cpu_usage": max(usages[k][name] for k in at),
            "cpu_samples": len(at),
        }


def test_field_that_is_always_missing_stays_missing() -> None:
    result = thinned(vms(0, a={"cpu": 1.0}, b={"cpu_usage": 1.0}), vms(1, a={"cpu": 1.0}, b={"cpu_usage": 1.0}))
    assert "cpu_usage" not in result.domains["a"]
    assert "cpu" not in result.domains["b"]
    assert not any(math.isnan(value) for value in result.domains["a"].values())
    assert np.isfinite(list(result.fields.values())).all()
