"""Simulated hosts whose VMs start and stop while they run: pages, counters, and usage that is cut at the CPUs."""

from __future__ import annotations

import pytest

pytest.importorskip("aiohttp")

from misc.fakeworkers.hosts import Host, Wanted
from misc.fakeworkers.machines import Plan
from misc.fakeworkers.pages import render_libvirt, render_node
from misc.fakeworkers.server import FakeWorkers
from tests.support.worker_pages import COUNTERS, NOW_MS, samples

PLAN = Plan(workers=1, vms=0, format="labels", dialect="tinkoff", stats_period_s=0, other_metrics=5)
GIB_KIB = 1 << 20
STEP_MS = 500


def host(cores: int = 16) -> Host:
    return Host(PLAN, 0, cores, 65536, NOW_MS - 60_000)


def vms_of(host: Host, at_ms: int) -> dict[str, float]:
    """vCPUs by VM on the page."""
    found = {}
    for name, value in samples(render_libvirt(host, at_ms)).items():
        if name.startswith("libvirt_domain_info_virtual_cpus"):
            found[name.split('"')[3]] = value
    return found


def cpu_seconds(host: Host, at_ms: int) -> dict[str, float]:
    """CPU time by VM on the page, and of the node by mode."""
    found: dict[str, float] = {}
    for page in (render_libvirt(host, at_ms), render_node(host, at_ms)):
        for name, value in samples(page).items():
            if name.startswith("libvirt_domain_info_cpu_time_seconds_total"):
                found[name.split('"')[3]] = value
            elif name.startswith("node_cpu_seconds_total"):
                mode = name.split('"mode": "')[1].split('"')[0]
                found[mode] = found.get(mode, 0.0) + value
    return found


def rates(host: Host, begin_ms: int, end_ms: int) -> dict[str, float]:
    """Cores used between two times."""
    before, after = cpu_seconds(host, begin_ms), cpu_seconds(host, end_ms)
    return {name: (after[name] - before[name]) / (end_ms - begin_ms) * 1000 for name in before}


def test_vm_is_on_the_pages_from_the_step_after_its_start_until_it_is_removed() -> None:
    one = host()
    assert vms_of(one, NOW_MS - 1) == {}
    one.add_vm("a", 2, 4 * GIB_KIB)
    assert vms_of(one, NOW_MS - 1) == {}
    one.run_step(NOW_MS, NOW_MS + STEP_MS, {"a": Wanted(1.0, 0.5)})
    assert vms_of(one, NOW_MS + 1) == {"a": 2}
    one.add_vm("b", 4, 8 * GIB_KIB)
    one.remove_vm("a")
    one.run_step(NOW_MS + STEP_MS, NOW_MS + 2 * STEP_MS, {"b": Wanted(1.0, 0.5)})
    assert vms_of(one, NOW_MS + STEP_MS + 1) == {"b": 4}


def test_vms_use_what_they_want_while_the_cpus_suffice() -> None:
    one = host()
    one.add_vm("a", 8, 4 * GIB_KIB)
    one.add_vm("b", 8, 4 * GIB_KIB)
    one.run_step(NOW_MS, NOW_MS + 10_000, {"a": Wanted(6.0, 0.5), "b": Wanted(2.0, 0.5)})
    used = rates(one, NOW_MS, NOW_MS + 10_000)
    assert used["a"] == pytest.approx(6.0, rel=1e-3)
    assert used["b"] == pytest.approx(2.0, rel=1e-3)
    assert used["user"] + used["system"] == pytest.approx(0.5 + 1.01 * 8, abs=0.02)
    assert used["idle"] == pytest.approx(16 - 0.5 - 1.01 * 8, abs=0.02)
    assert one.served == 1.0


def test_usage_is_cut_at_the_cpus_and_all_vms_are_slowed_alike() -> None:
    one = host()
    one.add_vm("a", 24, 4 * GIB_KIB)
    one.add_vm("b", 8, 4 * GIB_KIB)
    one.run_step(NOW_MS, NOW_MS + 10_000, {"a": Wanted(24.0, 0.5), "b": Wanted(6.0, 0.5)})
    used = rates(one, NOW_MS, NOW_MS + 10_000)
    assert one.served == pytest.approx(15.5 / (1.01 * 30))
    assert used["a"] / 24.0 == pytest.approx(one.served, rel=1e-3)
    assert used["b"] / 6.0 == pytest.approx(one.served, rel=1e-3)
    assert used["user"] + used["system"] == pytest.approx(16.0, abs=0.02)
    assert used["idle"] == pytest.approx(0.0, abs=0.02)


def test_counters_of_the_host_never_go_back_while_vms_come_and_go() -> None:
    one = host(cores=4)
    pages = []
    for step in range(30):
        begin = NOW_MS + step * STEP_MS
        one.add_vm(f"vm{step}", 2, GIB_KIB)
        if step >= 5:
            one.remove_vm(f"vm{step - 5}")
        alive = range(max(step - 4, 0), step + 1)
        one.run_step(begin, begin + STEP_MS, {f"vm{i}": Wanted(0.1 * (i % 13), 0.3) for i in alive})
        pages += [samples(render_node(one, begin + ms)) for ms in (0, 170, 499)]
    names = [name for name in pages[0] if COUNTERS.search(name.partition("{")[0])]
    assert any("guest" in name for name in names)
    for name in names:
        values = [page[name] for page in pages]
        assert values == sorted(values), name


def test_clock_and_counters_end_with_the_step_until_the_next_one_begins() -> None:
    one = host()
    assert one.epoch_ms(NOW_MS - 10) == NOW_MS - 10
    one.run_step(NOW_MS, NOW_MS + STEP_MS, {})
    assert one.epoch_ms(NOW_MS + 499) == NOW_MS + 499
    assert one.epoch_ms(NOW_MS + 700) == NOW_MS + STEP_MS
    one.run_step(NOW_MS + STEP_MS, NOW_MS + 2 * STEP_MS, {})
    assert one.epoch_ms(NOW_MS + 700) == NOW_MS + 700


def test_vm_of_the_same_name_starts_with_new_counters() -> None:
    one = host()
    one.add_vm("a", 2, GIB_KIB)
    one.run_step(NOW_MS, NOW_MS + STEP_MS, {"a": Wanted(2.0, 0.5)})
    one.remove_vm("a")
    one.add_vm("a", 4, GIB_KIB)
    one.run_step(NOW_MS + STEP_MS, NOW_MS + 2 * STEP_MS, {"a": Wanted(0.0, 0.5)})
    assert cpu_seconds(one, NOW_MS + STEP_MS)["a"] == 0.0
    assert vms_of(one, NOW_MS + STEP_MS) == {"a": 4}


def test_memory_of_vms_is_used_on_the_node() -> None:
    one = host()
    one.run_step(NOW_MS, NOW_MS + STEP_MS, {})
    before = samples(render_node(one, NOW_MS))["node_memory_MemAvailable_bytes"]
    one.add_vm("a", 2, 16 * GIB_KIB)
    one.run_step(NOW_MS + STEP_MS, NOW_MS + 2 * STEP_MS, {"a": Wanted(1.0, 0.5)})
    after = samples(render_node(one, NOW_MS + STEP_MS))["node_memory_MemAvailable_bytes"]
    assert (before - after) / 2**30 == pytest.approx(8.0, rel=0.1)


@pytest.mark.parametrize(("vcpus", "memory_kib"), [(0, GIB_KIB), (1, 1024)])
def test_impossible_size_is_refused(vcpus: int, memory_kib: int) -> None:
    with pytest.raises(ValueError, match="not the size of a VM"):
        host().add_vm("a", vcpus, memory_kib)


def test_vm_is_started_once() -> None:
    one = host()
    one.add_vm("a", 1, GIB_KIB)
    with pytest.raises(ValueError, match="runs already"):
        one.add_vm("a", 1, GIB_KIB)


@pytest.mark.parametrize("begin", [NOW_MS + 2 * STEP_MS, NOW_MS, NOW_MS - STEP_MS])
def test_steps_follow_each_other(begin: int) -> None:
    one = host()
    one.run_step(NOW_MS, NOW_MS + STEP_MS, {})
    with pytest.raises(ValueError, match="does not follow"):
        one.run_step(begin, begin + STEP_MS, {})


def test_history_of_memory_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="stats_period_s"):
        Host(Plan(), 0, 16, 65536, NOW_MS)


def test_server_injects_faults_and_no_events_into_a_host() -> None:
    fakes = FakeWorkers(PLAN, workers=[host()])
    fakes.inject(0, "500")
    assert fakes.state()["faults"]["0"]["fault"] == "500"
    with pytest.raises(ValueError, match="started and stopped by a scheduler"):
        fakes.inject(0, "vm-leaves")
