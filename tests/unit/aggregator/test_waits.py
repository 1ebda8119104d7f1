"""How long vCPUs and tasks waited: from counters that agree with the CPU time of the same machine, else unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.aggregator.rates import NodeRates
from model.samples import Contention, Scrape, ScrapeSample, VcpuTimes

NS = 1e9
WAITS = ("cpu_wait", "cpu_wait_share")


def node(at_s: float, used_s: float) -> dict[str, float]:
    """A node of 4 cores whose counters confirm each other."""
    return {
        "cpu_total": 4.0,
        "cpu_user": used_s * NS,
        "cpu_kernel": 0.0,
        "cpu_idle": (4 * at_s - used_s) * NS,
        "memory_total": 8192 * 1024.0,
        "memory_available": 6144 * 1024.0,
    }


def times(at_s: float, wait: Mapping[str, float], run: Mapping[str, float], source: str = "page") -> VcpuTimes:
    return VcpuTimes(source, at_s * 1000, wait, run)


def scrape(
    at_s: float,
    cpu_s: float,
    vcpus: VcpuTimes | None,
    counters: Mapping[str, float] | None = None,
    queue: Mapping[str, float] | None = None,
    **vm: float,
) -> Scrape:
    """A VM of 2 vCPUs with so much CPU time on a node with as much and a second more."""
    contention = Contention(at_s * 1000, counters or {}, queue or {}, {} if vcpus is None else {"a": vcpus})
    domain = {"cpu_alloc": 2.0, "cpu_cputime": cpu_s * NS, "memory_alloc": 1024 * 1024.0, **vm}
    return Scrape(at_s * 1000, node(at_s, cpu_s + 1), {"a": domain}, contention=contention)


def samples_of(*scrapes: Scrape) -> list[ScrapeSample]:
    rates = NodeRates("u")
    found = [rates.update(one).sample for one in scrapes]
    assert None not in found
    return [sample for sample in found if sample is not None]


def waits_of(*scrapes: Scrape) -> list[tuple[float | None, float | None]]:
    """Wait and its share of the VM in each sample."""
    return [
        (sample.domains["a"].get("cpu_wait"), sample.domains["a"].get("cpu_wait_share"))
        for sample in samples_of(*scrapes)
    ]


def problems_of(*scrapes: Scrape) -> list[str]:
    rates = NodeRates("u")
    return [problem.reason for problem in [rates.update(one) for one in scrapes][-1].problems]


def about(*values: float) -> object:
    return pytest.approx(values)


UNKNOWN = (None, None)
#: Times of the vCPUs at 10 s.
START = times(10, {"0": 1.0, "1": 2.0}, {"0": 3.0, "1": 4.0})
#: 1.5 s of waiting and 4.5 s of running later.
LATER = times(15, {"0": 2.0, "1": 2.5}, {"0": 5.5, "1": 6.0})


# --- a VM -------------------------------------------------------------------------------------------


def test_wait_is_the_sum_over_the_vcpus_and_its_share_that_of_wait_and_run() -> None:
    # 1.5 s in 5 s: 0.3 cores; 1.5 of 1.5 + 4.5 s.
    assert waits_of(scrape(10, 7, START), scrape(15, 11.5, LATER)) == [UNKNOWN, about(0.3, 0.25)]


def test_run_time_is_the_cpu_time_where_there_is_no_other() -> None:
    first, second = (replace(each, run={}) for each in (START, LATER))
    # 1.5 of 1.5 + 6 s.
    assert waits_of(scrape(10, 7, first), scrape(15, 13, second))[-1] == about(0.3, 0.2)


def test_idle_vm_with_fresh_counters_waits_for_0() -> None:
    assert waits_of(scrape(10, 7, START), scrape(15, 7.2, replace(START, at_ms=15_000.0)))[-1] == (0.0, 0.0)


def test_share_of_an_idle_vm_is_not_that_of_the_steps_of_its_counters() -> None:
    """Two vCPUs that waited for 5 ms and ran for less than 10 ms each: 5 of at most 25 ms."""
    idle = times(15, {"0": 1.005, "1": 2.0}, START.run)
    assert waits_of(scrape(10, 7, START), scrape(15, 7, idle))[-1] == about(0.001, 0.2)
    # The CPU time of the VM has no such steps.
    longer = times(15, {"0": 1.03, "1": 2.0}, START.run)
    assert waits_of(scrape(10, 7, START), scrape(15, 7.01, longer))[-1] == about(0.006, 0.75)


def test_starved_vm_waits_all_the_time() -> None:
    starved = times(15, {"0": 6.0, "1": 7.0}, START.run)
    assert waits_of(scrape(10, 7, START), scrape(15, 7, starved))[-1] == about(2.0, 1.0)


def test_period_is_that_of_the_page_of_the_vcpus() -> None:
    assert waits_of(scrape(10, 7, START), scrape(15, 11.5, replace(LATER, at_ms=13_000.0)))[-1] == about(0.5, 0.25)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(replace(LATER, wait={"0": 0.5, "1": 6.0}), id="a counter decreased while the sum grew"),
        pytest.param(replace(LATER, run={"0": 9.0, "1": 3.0}), id="a run time decreased"),
        pytest.param(replace(LATER, wait={"0": 2.0}, run={"0": 5.5}), id="a vCPU less"),
        pytest.param(replace(LATER, wait={**LATER.wait, "2": 0.1}, run={**LATER.run, "2": 0.1}), id="a vCPU more"),
        pytest.param(replace(LATER, wait={"0": 2.0, "2": 2.5}, run={"0": 5.5, "2": 6.0}), id="another vCPU"),
        pytest.param(replace(LATER, run={"0": 5.5}), id="run time of one vCPU"),
        pytest.param(replace(LATER, run={}), id="no run time any more"),
        pytest.param(replace(LATER, wait={"0": math.nan, "1": 2.5}), id="a wait twice on the page"),
        pytest.param(replace(LATER, run={"0": math.nan, "1": 6.0}), id="a run time twice on the page"),
        pytest.param(replace(LATER, wait={"0": math.inf, "1": 2.5}), id="infinite"),
        pytest.param(replace(LATER, source="other page"), id="another page"),
        pytest.param(replace(LATER, at_ms=10_000.0), id="no time has passed"),
        pytest.param(replace(LATER, at_ms=9_000.0), id="the clock went back"),
        pytest.param(replace(LATER, wait={"0": 13.2, "1": 2.0}), id="longer than the period"),
        pytest.param(replace(LATER, run={"0": 5003.0, "1": 2004.0}), id="run time in a wrong unit"),
        pytest.param(replace(START, at_ms=15_000.0), id="the counters are old"),
        pytest.param(replace(LATER, run=START.run), id="the run times are old"),
        pytest.param(None, id="none on the page"),
    ],
)
def test_wait_is_missing_and_nothing_else(second: VcpuTimes | None) -> None:
    clean = samples_of(scrape(10, 7, None), scrape(15, 11.5, None))[-1]
    damaged = samples_of(scrape(10, 7, START), scrape(15, 11.5, second))[-1]
    assert damaged == clean
    assert damaged.domains["a"]["cpu_usage"] == pytest.approx(0.9)


def test_longest_possible_wait_is_known_and_a_longer_one_reported() -> None:
    def later(wait_s: float) -> Scrape:
        return scrape(15, 7, times(15, {"0": 1.0 + wait_s, "1": 2.0}, START.run))

    # 1.1 x 2 vCPUs x 5 s and 0.05 s.
    assert waits_of(scrape(10, 7, START), later(11.04))[-1][0] == pytest.approx(2.208)
    assert waits_of(scrape(10, 7, START), later(11.06))[-1] == UNKNOWN
    assert problems_of(scrape(10, 7, START), later(11.06)) == ["vm_wait"]
    assert problems_of(scrape(10, 7, START), later(11.04)) == []


def test_times_of_vcpus_of_another_period_are_unknown() -> None:
    """They ran for 5 s. Up to twice the CPU time is accepted, 5 % of the vCPUs and 50 ms each: 2 x 2.2 + 0.5 + 0.1 s."""
    ran = times(15, {"0": 2.0, "1": 2.5}, {"0": 6.0, "1": 6.0})
    assert waits_of(scrape(10, 7, START), scrape(15, 9.21, ran))[-1] == about(0.3, 1.5 / 6.5)
    assert waits_of(scrape(10, 7, START), scrape(15, 9.19, ran))[-1] == UNKNOWN


def test_run_times_of_other_vcpus_than_those_that_wait_are_unknown() -> None:
    pages = [replace(each, run={"0": each.run["0"]}) for each in (START, LATER)]
    assert waits_of(scrape(10, 7, pages[0]), scrape(15, 11.5, pages[1]))[-1] == UNKNOWN


def test_wait_is_missing_without_a_cpu_usage() -> None:
    """One counter of the VM decreased."""
    pages = [scrape(10, 7, START, stat_minflt=5.0), scrape(15, 11.5, LATER, stat_minflt=4.0)]
    assert waits_of(*pages)[-1] == UNKNOWN
    assert "cpu_usage" not in samples_of(*pages)[-1].domains["a"]


def test_counters_that_never_counted_are_unknown() -> None:
    """A kernel without CONFIG_SCHED_INFO."""
    first, second = (replace(each, wait={"0": 0.0, "1": 0.0}) for each in (START, LATER))
    assert waits_of(scrape(10, 7, first), scrape(15, 11.5, second))[-1] == UNKNOWN
    without = [replace(each, run={}) for each in (first, second)]
    assert waits_of(scrape(10, 7, without[0]), scrape(15, 11.5, without[1]))[-1] == UNKNOWN


def test_file_that_is_renewed_at_every_third_scrape_gives_the_wait_of_the_whole_period() -> None:
    def at(number: int) -> Scrape:
        age_s = number % 3 * 5.0
        renewed_s = 5.0 * number - age_s
        # A fifth of a core of waiting, 0.8 of running.
        vcpus = times(10 + 5 * number, {"0": 1 + 0.2 * renewed_s}, {"0": 2 + 0.8 * renewed_s})
        return scrape(10 + 5 * number, 7 + 4.0 * number, vcpus)

    found = waits_of(*map(at, range(10)))
    assert [found[k] for k in (3, 6, 9)] == [about(0.2, 0.2)] * 3
    assert [found[k] for k in (0, 1, 2, 4, 5, 7, 8)] == [UNKNOWN] * 7


def test_wait_after_a_page_without_counters_is_that_of_both_periods() -> None:
    pages = [scrape(10, 7, START), scrape(12, 9, None), scrape(15, 11.5, LATER)]
    assert waits_of(*pages) == [UNKNOWN, UNKNOWN, about(0.3, 0.25)]


def test_wait_starts_again_after_a_restart_of_the_vm() -> None:
    restarted = times(15, {"0": 0.1, "1": 0.1}, {"0": 1.0, "1": 1.0})
    then = times(20, {"0": 0.6, "1": 0.1}, {"0": 2.5, "1": 1.0})
    pages = [scrape(10, 7, START), scrape(15, 2, restarted), scrape(20, 3.5, then)]
    assert waits_of(pages[0], pages[1], replace(pages[2], node=node(20, 5)))[1:] == [UNKNOWN, about(0.1, 0.25)]


def test_vm_that_returns_starts_fresh() -> None:
    away = replace(scrape(12, 7, None), domains={})
    assert "cpu_wait" not in samples_of(scrape(10, 7, START), away, scrape(15, 11.5, LATER))[-1].domains["a"]


def test_wait_needs_the_cpu_time_of_the_vm() -> None:
    pages = [scrape(10, 7, START), scrape(15, 11.5, LATER)]
    without = [
        replace(page, domains={"a": {k: v for k, v in page.domains["a"].items() if k != "cpu_cputime"}})
        for page in pages
        if page.domains is not None
    ]
    assert waits_of(*without)[-1] == UNKNOWN


def test_wait_is_missing_with_the_cpu_usage_when_the_vms_contradict_the_node() -> None:
    """Two VMs stand still while the node is as busy as before."""

    def at(at_s: float, a_s: float, b_s: float, used_s: float) -> Scrape:
        page = scrape(at_s, a_s, times(at_s, {"0": 0.1 * at_s}, {"0": a_s}))
        assert page.domains is not None
        vms = {**page.domains, "b": {**page.domains["a"], "cpu_cputime": b_s * NS}}
        return replace(page, domains=vms, node=node(at_s, used_s))

    pages = [at(10, 5, 1, 5), at(15, 10, 2, 12), at(20, 15, 3, 19)]
    *_, before, last = samples_of(*pages, at(25, 15, 3.9, 26))
    assert "cpu_wait" in before.domains["a"]
    assert problems_of(*pages, at(25, 15, 3.9, 26)) == ["vms_cpu"]
    assert not {"cpu_usage", *WAITS} & last.domains["a"].keys()


# --- the counters of vmprobe ------------------------------------------------------------------------


def probed(at_s: float, cpu_s: float, run_s: float, wait_s: float) -> Scrape:
    return scrape(at_s, cpu_s, None, sched_runtime=run_s * NS, sched_waittime=wait_s * NS)


def test_counters_of_a_probe_count_when_its_thread_is_the_vm() -> None:
    # 4 of 5 s of the VM's CPU time: 80 %.
    assert waits_of(probed(10, 7, 3, 1), probed(15, 12, 7.01, 2))[-1] == about(0.2, 1 / 5.01)


@pytest.mark.parametrize(
    ("cpu_s", "run_s", "wait_s"),
    [
        pytest.param(12, 6.99, 2, id="its thread ran for less than 80 % of the VM's time"),
        pytest.param(7, 3, 1, id="the VM did not run"),
        pytest.param(7, 7, 2, id="the VM did not run, the thread did"),
        pytest.param(12, 8, 0.5, id="decreased"),
        pytest.param(12, 8, 12.1, id="longer than the period"),
    ],
)
def test_counters_of_a_probe_are_not_those_of_the_vm(cpu_s: float, run_s: float, wait_s: float) -> None:
    assert waits_of(probed(10, 7, 3, 1), probed(15, cpu_s, run_s, wait_s))[-1] == UNKNOWN


def test_times_of_vcpus_are_preferred_to_those_of_a_probe() -> None:
    sched = {"sched_runtime": 3 * NS, "sched_waittime": NS}
    later = {"sched_runtime": 8 * NS, "sched_waittime": 5 * NS}
    pages = [scrape(10, 7, START, **sched), scrape(15, 11.5, LATER, **later)]
    assert waits_of(*pages)[-1] == about(0.3, 0.25)
    damaged = scrape(15, 11.5, replace(LATER, wait={"0": math.nan, "1": 1.0}), **later)
    assert waits_of(pages[0], damaged)[-1] == UNKNOWN


# --- a node -----------------------------------------------------------------------------------------

COUNTERS = {"psi_cpu": 10.0, "psi_memory": 2.0, "swap_in": 100.0, "oom_kills": 3.0}


def fields_of(
    counters: Mapping[str, float], queue: Mapping[str, float] | None = None, at_s: float = 15, **page: float
) -> Mapping[str, float]:
    """Fields of the node from a page after one with these counters, 5 s later."""
    second = scrape(15, 11.5, None, counters, queue)
    assert second.contention is not None
    contention = replace(second.contention, at_ms=at_s * 1000)
    second = replace(second, contention=contention, node={**second.node, **page})
    return samples_of(scrape(10, 7, None, COUNTERS, {"0": 1.0, "1": 2.0}), second)[-1].fields


def test_pressure_and_waits_of_a_node() -> None:
    fields = fields_of({"psi_cpu": 12.5, "psi_memory": 2.25, "swap_in": 600.0, "oom_kills": 5.0}, {"0": 3.0, "1": 2.5})
    assert fields["psi_cpu"] == pytest.approx(0.5)
    assert fields["psi_memory"] == pytest.approx(0.05)
    assert fields["cpu_wait"] == pytest.approx(0.5)
    assert (fields["swap_in"], fields["oom_kills"]) == (100.0, 2.0)


def test_calm_node_has_fields_of_0_and_a_first_page_none() -> None:
    calm = fields_of(COUNTERS, {"0": 1.0, "1": 2.0 + 1e-9})
    assert [calm[name] for name in ("psi_cpu", "psi_memory", "swap_in", "oom_kills")] == [0.0] * 4
    assert calm["cpu_wait"] == pytest.approx(2e-10)
    first = samples_of(scrape(10, 7, None, COUNTERS, {"0": 1.0}))[-1].fields
    assert not {*COUNTERS, "cpu_wait"} & first.keys()


@pytest.mark.parametrize("name", COUNTERS)
@pytest.mark.parametrize("value", [None, math.nan, -1.0, 1.9])
def test_counter_that_is_missing_or_decreased_costs_only_its_field(name: str, value: float | None) -> None:
    counters = {**COUNTERS, **({} if value is None else {name: value})}
    if value is None:
        del counters[name]
    fields = fields_of(counters)
    assert name not in fields
    assert {*COUNTERS, "cpu_usage"} - {name} <= fields.keys()


def test_share_of_time_is_clipped_and_unknown_when_it_is_impossible() -> None:
    assert fields_of({**COUNTERS, "psi_cpu": 15.2})["psi_cpu"] == 1.0
    fields = fields_of({**COUNTERS, "psi_cpu": 15.3})
    assert "psi_cpu" not in fields
    assert fields["psi_memory"] == 0.0
    first, second = (scrape(at, 7, None, {"psi_memory": at * 2.0}) for at in (10, 15))
    assert problems_of(first, second) == ["pressure"]


@pytest.mark.parametrize(
    "queue",
    [
        pytest.param({"0": 3.0, "1": 1.9}, id="a counter decreased"),
        pytest.param({"0": 3.0}, id="a CPU less"),
        pytest.param({"0": 3.0, "1": 2.5, "2": 1.0}, id="a CPU more"),
        pytest.param({"0": 3.0, "2": 2.5}, id="another CPU"),
        pytest.param({"0": 3.0, "1": math.nan}, id="not a number"),
        pytest.param({"0": 1.0, "1": 2.0}, id="stands still while the node is busy"),
        pytest.param({"0": 1.0 + 4 * 5 * 1001, "1": 2.0}, id="more than 1000 tasks per core"),
        pytest.param({}, id="not on the page"),
    ],
)
def test_wait_of_a_node_is_missing_and_nothing_else(queue: Mapping[str, float]) -> None:
    fields = fields_of(COUNTERS, queue)
    assert "cpu_wait" not in fields
    assert {*COUNTERS, "cpu_usage"} <= fields.keys()


def test_queues_that_never_counted_are_unknown_on_an_idle_node_too() -> None:
    pages = [replace(scrape(at, 7, None, COUNTERS, {"0": 0.0, "1": 0.0}), node=node(at, 8)) for at in (10, 15)]
    fields = samples_of(*pages)[-1].fields
    assert fields["cpu_usage"] == 0.0
    assert "cpu_wait" not in fields
    assert fields["psi_cpu"] == 0.0


def test_long_queue_is_known_and_an_impossible_one_reported() -> None:
    assert fields_of({}, {"0": 1.0 + 4 * 5 * 999, "1": 2.0})["cpu_wait"] == pytest.approx(3996)
    pages = [scrape(at, 7 + at / 10, None, {}, {"0": 1 + 4100.0 * at}) for at in (10, 15)]
    assert problems_of(*pages) == ["node_wait"]


def test_pressure_has_the_time_of_its_page_and_none_when_that_contradicts_the_probe() -> None:
    later = {**COUNTERS, "psi_cpu": 12.5}
    assert fields_of(later, at_s=16)["psi_cpu"] == pytest.approx(2.5 / 6)
    assert not {*COUNTERS} & fields_of(later, at_s=17).keys()
    assert fields_of(later, at_s=17, probe_delay=3000.0)["psi_cpu"] == pytest.approx(2.5 / 7)
    assert not {*COUNTERS} & fields_of(later, at_s=10).keys()
    assert not {*COUNTERS} & fields_of(later, at_s=9).keys()
    assert not {*COUNTERS} & fields_of(later, at_s=3600).keys()


def test_figures_of_a_node_need_a_confirmed_cpu_usage() -> None:
    # Idle time is missing.
    first, second = scrape(10, 7, None, COUNTERS), scrape(15, 11.5, None, COUNTERS)
    bad = replace(second, node={k: v for k, v in second.node.items() if k != "cpu_idle"})
    fields = samples_of(first, bad)[-1].fields
    assert not {*COUNTERS, "cpu_wait", "cpu_usage"} & fields.keys()
    # The rate after that covers both periods, as the CPU usage.
    third = scrape(20, 12, None, {**COUNTERS, "psi_cpu": 15.0})
    assert samples_of(first, bad, third)[-1].fields["psi_cpu"] == pytest.approx(0.5)


def test_wait_of_a_node_by_its_probe() -> None:
    def at(at_s: float, run_s: float, wait_s: float) -> Scrape:
        page = replace(scrape(at_s, 7, None), contention=None)
        sched = {"sched_runtime": run_s * NS, "sched_waittime": wait_s * NS}
        return replace(page, node={**page.node, "cpu_user": at_s * NS, "cpu_idle": 3 * at_s * NS, **sched})

    assert samples_of(at(10, 3, 1), at(15, 8, 3))[-1].fields["cpu_wait"] == pytest.approx(0.4)
    # Those of node_exporter are preferred, also when they are damaged.
    pages = [at(10, 3, 1), at(15, 8, 3)]
    for queues, wait in (([1.0, 4.0], 0.6), ([1.0, 0.5], None)):
        both = [
            replace(page, contention=Contention(page.epoch_ms, {}, {"0": s}, {}))
            for page, s in zip(pages, queues, strict=True)
        ]
        assert samples_of(*both)[-1].fields.get("cpu_wait") == (wait and pytest.approx(wait))
    # On many hosts both are 0.
    assert "cpu_wait" not in samples_of(at(10, 0, 0), at(15, 0, 0))[-1].fields
    assert "cpu_wait" not in samples_of(at(10, 3, 1), at(15, 3, 3))[-1].fields
    assert "cpu_wait" not in samples_of(at(10, 3, 1), at(15, 8, 3 + 4 * 5 * 1001))[-1].fields


# --- any input --------------------------------------------------------------------------------------

COUNTER = st.one_of(st.floats(0, 50), st.floats(allow_nan=True, allow_infinity=True))
TABLE = st.dictionaries(st.sampled_from("01"), COUNTER, min_size=1, max_size=2)


@given(
    st.lists(
        st.tuples(st.floats(0, 20), TABLE, st.one_of(st.just({}), TABLE), TABLE, COUNTER, st.floats(-10, 30)),
        min_size=2,
        max_size=5,
    )
)
def test_figures_are_in_their_ranges(
    pages: list[tuple[float, dict[str, float], dict[str, float], dict[str, float], float, float]],
) -> None:
    scrapes = []
    for k, (cpu_s, wait, run, queue, counter, at_s) in enumerate(pages):
        page = scrape(10 + 5 * k, cpu_s, times(at_s, wait, run), dict.fromkeys(COUNTERS, counter), queue)
        scrapes.append(page)
    for sample in samples_of(*scrapes):
        for fields in (sample.fields, *sample.domains.values()):
            assert all(0 <= value < math.inf for value in fields.values())
            for name in ("psi_cpu", "psi_memory", "cpu_wait_share"):
                assert fields.get(name, 0.0) <= 1.0
        for vm in sample.domains.values():
            assert vm.keys() >= ({"cpu_usage"} if "cpu_wait" in vm else set())
            assert ("cpu_wait" in vm) == ("cpu_wait_share" in vm)
