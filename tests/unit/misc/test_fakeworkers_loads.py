"""Contention, lack of memory and quotas of simulated workers, as the aggregator sees them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from misc.fakeworkers.hosts import Host, Wanted
from misc.fakeworkers.loads import LOADS
from misc.fakeworkers.machines import Plan, Shapes, Worker, build_worker
from misc.fakeworkers.pages import RENDERERS
from model.aggregator.libvirt_exporter import LabelReader
from model.aggregator.rates import NodeRates
from model.aggregator.vmprobe import VmprobeReader
from model.samples import ScrapeSample
from tests.support.worker_pages import COUNTERS, NOW_MS, plain_samples

STEP_MS = 5000
#: 8 VMs of 21 vCPUs on 8 cores.
CORES = 8
FORMATS = {
    "vmprobe-textfile": {"format": "vmprobe-textfile", "vcpu_delay": True},
    "kumina": {"format": "labels", "vcpu_delay": True},
    **{dialect: {"format": "labels", "dialect": dialect} for dialect in ("tinkoff", "inovex", "kubevirt")},
}
each_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes(1)


Build = Callable[..., Worker]


@pytest.fixture
def build(shapes: Shapes) -> Build:
    def build_one(name: str = "tinkoff", **settings: int) -> Worker:
        plan = Plan(**{"workers": 1, "vms": 8, "other_metrics": 5, "probe_delay_ms": 0, **FORMATS[name], **settings})  # type: ignore[arg-type]
        return build_worker(plan, shapes, 0)

    return build_one


class Aggregator:
    """Scrapes a worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._labels, self._vmprobe, self._rates = LabelReader(), VmprobeReader("vmprobe"), NodeRates("w")

    def scrape(self, at_ms: int) -> ScrapeSample:
        """The sample of a time; the domains by the names of the worker."""
        pages = [RENDERERS[endpoint](self.worker, at_ms) for endpoint in self.worker.plan.endpoints]
        if self.worker.plan.format == "labels":
            scrape = self._labels.read(pages[0], at_ms, pages[1], at_ms)
        else:
            scrape = self._vmprobe.read(pages[0], at_ms)
        sample, problems = self._rates.update(scrape)
        assert problems == []
        assert sample is not None
        return sample

    def vms(self, sample: ScrapeSample) -> dict[int, dict[str, float]]:
        """Fields of the VMs by their number."""
        names = {}
        for j, name in enumerate(self.worker.names):
            names |= {name: j, name.replace("-", ""): j, f"default_{name}": j}
        return {names[domain]: dict(fields) for domain, fields in sample.domains.items()}


@each_format
def test_vms_and_node_of_a_calm_worker_hardly_wait(name: str, build: Build) -> None:
    aggregator = Aggregator(build(name))
    samples = [aggregator.scrape(NOW_MS + STEP_MS * k) for k in range(20)]
    for sample in samples[1:]:
        assert len(sample.domains) == 8
        for vm in sample.domains.values():
            assert 0 < vm["cpu_wait"] < 0.02 * vm["cpu_usage"]
            assert 0 < vm["cpu_wait_share"] < 0.02
        assert 0 < sample.fields["psi_cpu"] < 0.02
        assert 0 < sample.fields["cpu_wait"] < 0.02 * sample.fields["cpu_usage"]
        assert [sample.fields[field] for field in ("psi_memory", "swap_in", "oom_kills")] == [0.0, 0.0, 0.0]


@each_format
def test_vms_that_want_more_than_the_node_has_share_it_and_wait_for_the_rest(name: str, build: Build) -> None:
    worker = build(name, cores=CORES)
    aggregator = Aggregator(worker)
    for k in range(3):
        aggregator.scrape(NOW_MS + STEP_MS * k)
    worker.begin_load("contention", NOW_MS + 2 * STEP_MS, NOW_MS + 12 * STEP_MS)
    vcpus = worker.vcpus.tolist()
    assert sum(vcpus) > CORES
    for k in range(3, 12):
        sample = aggregator.scrape(NOW_MS + STEP_MS * k)
        assert sample.fields["cpu_usage"] == pytest.approx(CORES, abs=0.05)
        assert sample.fields["psi_cpu"] == pytest.approx(0.95, abs=0.01)
        # 7.48 cores for the VMs: the host takes half a core, and a little waits for disks.
        assert sample.fields["cpu_wait"] == pytest.approx(sum(vcpus) - 7.48, rel=0.02)
        vms = aggregator.vms(sample)
        assert sum(vm["cpu_usage"] for vm in vms.values()) == pytest.approx(7.48, abs=0.02)
        for j, vm in vms.items():
            assert vm["cpu_usage"] + vm["cpu_wait"] == pytest.approx(vcpus[j], rel=1e-3)
            assert vm["cpu_wait_share"] == pytest.approx(1 - 7.48 / sum(vcpus), rel=1e-3)
    aggregator.scrape(NOW_MS + 12 * STEP_MS)
    calm = aggregator.scrape(NOW_MS + 13 * STEP_MS)
    assert calm.fields["psi_cpu"] < 0.02
    assert all(vm["cpu_wait_share"] < 0.02 for vm in calm.domains.values())


@each_format
def test_vm_with_a_quota_waits_alone(name: str, build: Build) -> None:
    worker = build(name)
    aggregator = Aggregator(worker)
    vcpus = worker.vcpus.tolist()
    capped = vcpus.index(max(vcpus))
    aggregator.scrape(NOW_MS)
    worker.begin_load("quota", NOW_MS, None, vm=capped)
    for k in range(1, 10):
        sample = aggregator.scrape(NOW_MS + STEP_MS * k)
        vms = aggregator.vms(sample)
        vm = vms.pop(capped)
        assert vm["cpu_usage"] == pytest.approx(vcpus[capped] / 2, rel=1e-3)
        assert vm["cpu_wait"] == pytest.approx(vcpus[capped] / 2, rel=1e-3)
        assert vm["cpu_wait_share"] == pytest.approx(0.5, abs=1e-3)
        assert all(other["cpu_wait_share"] < 0.02 for other in vms.values())
        assert sample.fields["psi_cpu"] < 0.02
        assert sample.fields["cpu_usage"] < 0.8 * sample.fields["cpu"]


@each_format
def test_node_without_memory_stalls_and_swaps_in(name: str, build: Build) -> None:
    worker = build(name)
    aggregator = Aggregator(worker)
    aggregator.scrape(NOW_MS)
    worker.begin_load("memory-pressure", NOW_MS, None)
    samples = [aggregator.scrape(NOW_MS + STEP_MS * k) for k in range(1, 25)]
    for sample in samples:
        assert sample.fields["psi_memory"] == pytest.approx(0.2, abs=0.01)
        assert sample.fields["swap_in"] == pytest.approx(2000)
        assert sample.fields["mem_usage"] == pytest.approx(0.99 * sample.fields["mem"], rel=1e-3)
        assert sample.fields["psi_cpu"] < 0.02
        assert all(vm["cpu_wait_share"] < 0.02 for vm in sample.domains.values())
    # One per minute, of two minutes.
    assert sum(sample.fields["oom_kills"] for sample in samples) == 2


def test_probe_alone_shows_no_waits_of_vms(shapes: Shapes) -> None:
    """It reads the main thread of a VM only."""
    worker = build_worker(Plan(workers=1, vms=8, cores=CORES, probe_delay_ms=0), shapes, 0)
    aggregator = Aggregator(worker)
    aggregator.scrape(NOW_MS)
    worker.begin_load("contention", NOW_MS, None)
    sample = aggregator.scrape(NOW_MS + STEP_MS)
    assert all("cpu_usage" in vm and "cpu_wait" not in vm for vm in sample.domains.values())
    assert sample.fields["cpu_wait"] > 10
    assert "psi_cpu" not in sample.fields


def test_kumina_and_node_exporter_alone_show_no_waits_of_vms(shapes: Shapes) -> None:
    worker = build_worker(Plan(workers=1, vms=8, format="labels", dialect="kumina"), shapes, 0)
    aggregator = Aggregator(worker)
    aggregator.scrape(NOW_MS)
    sample = aggregator.scrape(NOW_MS + STEP_MS)
    assert all("cpu_usage" in vm and "cpu_wait" not in vm for vm in sample.domains.values())
    assert {"psi_cpu", "cpu_wait"} <= sample.fields.keys()


@each_format
def test_counters_never_go_back_while_loads_and_vms_come_and_go(name: str, build: Build) -> None:
    worker = build(name, cores=CORES)
    pages: list[dict[str, float]] = []

    def render(at_ms: int) -> None:
        pages.append(
            {
                k: v
                for endpoint in worker.plan.endpoints
                for k, v in plain_samples(RENDERERS[endpoint](worker, at_ms)).items()
            }
        )

    at_ms = NOW_MS
    for number, load in enumerate([*LOADS, "contention", "quota"]):
        worker.begin_load(load, at_ms, at_ms + 7000 if number % 2 else None)
        for event in (worker.stop_vm, worker.start_vm):
            for _ in range(3):
                render(at_ms)
                at_ms += 1777
            event(3, at_ms)
        worker.end_load(at_ms)
        render(at_ms)
    stopped = worker.names[3].replace("-", "")
    counters = [
        counter
        for counter in pages[0]
        if (COUNTERS.search(counter.partition("{")[0]) or "vmstat" in counter)
        and stopped not in counter.replace("-", "")
    ]
    for kind in ("pressure", "vmstat_oom_kill", "vcpu"):
        assert any(kind in counter for counter in counters)
    for counter in counters:
        values = [page[counter] for page in pages]
        assert values == sorted(values), counter


def test_vms_of_a_worker_with_few_cores_regularly_find_enough(build: Build) -> None:
    worker = build(cores=2)
    aggregator = Aggregator(worker)
    samples = [aggregator.scrape(NOW_MS + STEP_MS * k) for k in range(100)]
    assert samples[0].fields["cpu"] == 2
    assert all(sample.fields["cpu_usage"] <= 2 for sample in samples[1:])


def test_reboot_starts_the_counters_of_waits_again(build: Build) -> None:
    worker = build(cores=CORES)
    worker.begin_load("contention", NOW_MS, None)
    before = worker.node_load(NOW_MS + 60_000)
    worker.reboot(NOW_MS + 60_000)
    assert worker.node_load(NOW_MS + 60_000) == (0, 0, 0, 0, 0)
    after = worker.node_load(NOW_MS + 61_000)
    assert 0 < after.wait_ns < before.wait_ns
    assert 0 < after.cpu_pressure_ns <= 10**9
    assert (worker.wait_ns(NOW_MS + 60_000) == worker.wait_base).all()


def test_contention_is_refused_when_the_node_has_enough(build: Build) -> None:
    with pytest.raises(
        ValueError, match=r"contention: \d+ vCPUs find enough free CPU; give the node less with --cores"
    ):
        build().begin_load("contention", NOW_MS, None)
    worker = build()
    worker.stop_vm(0, NOW_MS)
    with pytest.raises(ValueError, match="vm: worker 0 has no VM number 0 for quota"):
        worker.begin_load("quota", NOW_MS, None, vm=0)


def test_contention_ends_when_the_vms_that_stay_find_enough(build: Build) -> None:
    worker = build(cores=CORES)
    worker.begin_load("contention", NOW_MS, None)
    for vm in range(1, 8):
        worker.stop_vm(vm, NOW_MS + vm)
    assert worker.loads.current(NOW_MS + 10) is None


# --- hosts whose VMs are given ----------------------------------------------------------------------


def test_vms_of_a_full_host_wait_for_what_they_do_not_get() -> None:
    plan = Plan(workers=1, vms=0, format="labels", dialect="tinkoff", stats_period_s=0, other_metrics=5)
    host = Host(plan, 0, 8, 65536, NOW_MS - 60_000)
    host.add_vm("calm", 4, 4 << 20)
    host.add_vm("busy", 8, 4 << 20)
    aggregator = Aggregator(host)

    def sample_of(step: int, calm: float, busy: float) -> ScrapeSample:
        begin_ms = NOW_MS + 10_000 * step
        host.run_step(begin_ms, begin_ms + 10_000, {"calm": Wanted(calm, 0.5), "busy": Wanted(busy, 0.5)})
        aggregator.scrape(begin_ms + 1000)
        return aggregator.scrape(begin_ms + 9000)

    sample = sample_of(0, 1.0, 2.0)
    assert all(0 < vm["cpu_wait_share"] < 0.02 for vm in sample.domains.values())
    assert sample.fields["psi_cpu"] < 0.02
    sample = sample_of(1, 4.0, 8.0)
    for name, wanted in (("calm", 4.0), ("busy", 8.0)):
        vm = sample.domains[name]
        # And an eightieth of what it runs.
        assert vm["cpu_wait"] == pytest.approx(wanted - vm["cpu_usage"] + vm["cpu_usage"] / 80, rel=1e-3)
        assert vm["cpu_usage"] == pytest.approx(wanted * host.served, rel=1e-3)
    assert sample.fields["psi_cpu"] == pytest.approx(0.95, abs=0.01)
    assert sample.fields["cpu_wait"] == pytest.approx(sum(vm["cpu_wait"] for vm in sample.domains.values()), abs=0.02)
    sample = sample_of(2, 1.0, 2.0)
    assert all(0 < vm["cpu_wait_share"] < 0.02 for vm in sample.domains.values())
