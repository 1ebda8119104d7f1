"""Scrapes of real exporters, as Debian packages them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from misc.fakeworkers.machines import Plan, Shapes, build_worker
from misc.fakeworkers.pages import render_vmprobe
from model.aggregator.limits import PageLimits
from model.aggregator.metrics import AggregatorMetrics
from model.aggregator.rates import NodeRates
from model.aggregator.scrape_manager import ScrapeManager
from model.aggregator.scraper import ScrapeError, Scraper, open_session
from model.aggregator.settings import AggregatorSettings
from model.aggregator.vmprobe import VmprobeReader
from model.common.targets import LabelStub, Stub, VmprobeStub
from model.samples import Scrape, ScrapeSample
from model.store.settings import StoreSettings
from tests.conftest import ROOT, SHARED
from tests.support.guests import CannotBuildError, Host, cache_folder, missing, package, unpack, which
from tests.support.servers import fetch, free_port, wait_for

NODE_EXPORTER, LIBVIRT_EXPORTER = "prometheus-node-exporter", "prometheus-libvirt-exporter"


@contextlib.contextmanager
def exporter(program: str, *arguments: str) -> Iterator[str]:
    """An exporter on a free port; its URL."""
    if shutil.which(program) is None:
        pytest.skip(f"Debian's {program} is not installed")
    port = free_port()
    process = subprocess.Popen(
        [program, f"--web.listen-address=127.0.0.1:{port}", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}/metrics"
    try:
        wait_for(lambda: fetch(url)[0] == 200)
        yield url
    finally:
        process.kill()
        process.wait(30)


@pytest.fixture
def textfile(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / "textfile"
    folder.mkdir()
    with exporter(NODE_EXPORTER, f"--collector.textfile.directory={folder}") as url:
        yield url, folder


def put(folder: Path, page: bytes) -> None:
    (folder / "new").write_bytes(page)
    (folder / "new").rename(folder / "vms.prom")


def scrape(stub: Stub) -> Scrape:
    async def scrape_once() -> Scrape:
        async with open_session(5.0, 2**23) as session:
            return await Scraper(stub, session, 5.0, 2**23).scrape()

    # The time of arrival differs from scrape to scrape.
    return replace(asyncio.run(scrape_once()), received_ms=None)


def test_node_exporter_serves_all_metrics_of_a_generated_page(textfile: tuple[str, Path]) -> None:
    url, folder = textfile
    worker = build_worker(Plan(workers=1, vms=12), Shapes(1), 0)
    now_ms = int(time.time()) * 1000
    put(folder, render_vmprobe(worker, now_ms))
    result = scrape(VmprobeStub(url, url, "vmprobe"))
    assert result.epoch_ms == now_ms
    assert len(result.domains or {}) == 12
    # The exporter writes large numbers with exponents and all digits.
    assert str(int(result.node["cpu_user"])).encode() in render_vmprobe(worker, now_ms)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared folder with captured pages")
def test_node_exporter_does_not_change_captured_pages(textfile: tuple[str, Path]) -> None:
    url, folder = textfile
    for page in sorted((SHARED / "captures").glob("vmprobe_*.prom")):
        put(folder, page.read_bytes())
        # The exporter adds its own metrics of the node.
        result = scrape(VmprobeStub(url, url, "vmprobe"))
        assert replace(result, contention=None) == VmprobeReader("vmprobe").read(page.read_bytes())


def test_incomplete_file_is_refused(textfile: tuple[str, Path]) -> None:
    url, folder = textfile
    stub = VmprobeStub(url, url, "vmprobe")
    page = render_vmprobe(build_worker(Plan(workers=1, vms=3), Shapes(1), 0), int(time.time()) * 1000)
    put(folder, page)
    complete = replace(scrape(stub), contention=None)
    for part in (b"", page[:200], page[: len(page) // 2]):
        put(folder, part)
        with pytest.raises(ScrapeError):
            scrape(stub)
    put(folder, page)
    assert replace(scrape(stub), contention=None) == complete


def test_page_that_node_exporter_drops_for_an_invalid_name_is_refused(textfile: tuple[str, Path]) -> None:
    url, folder = textfile
    page = render_vmprobe(build_worker(Plan(workers=1, vms=3), Shapes(1), 0), int(time.time()) * 1000)
    put(folder, page + b"vmprobe_domain_web.1_cpu_alloc 2\n")
    with pytest.raises(ScrapeError, match="no metric of prefix"):
        scrape(VmprobeStub(url, url, "vmprobe"))


@contextlib.contextmanager
def one_busy_core() -> Iterator[None]:
    """The VM of the test driver uses one core: a node that uses less contradicts it."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_rates_of_node_and_domains_of_label_exporters() -> None:
    """The test driver of libvirt has a VM of 2 vCPUs and 2 GB whose CPU time is the time of day."""
    with (
        exporter(NODE_EXPORTER) as node,
        exporter(LIBVIRT_EXPORTER, "--libvirt.uri=test:///default") as libvirt,
        one_busy_core(),
    ):
        samples: list[ScrapeSample] = []
        settings = AggregatorSettings(
            (LabelStub("w1", node, libvirt),),
            *(0.5, 5.0, 2**23, 2**20, PageLimits(), 0, ""),
            StoreSettings(None, Path("unused"), 1),
        )
        manager = ScrapeManager(settings, samples.append, AggregatorMetrics(CollectorRegistry()))

        async def scrape_six_times() -> None:
            stop = asyncio.Event()
            task = asyncio.create_task(manager.run(stop))
            deadline_s = time.monotonic() + 30
            while len(samples) < 6 and time.monotonic() < deadline_s:
                await asyncio.sleep(0.05)
            stop.set()
            await task

        asyncio.run(scrape_six_times())
    sample = samples[-1]
    assert sample.fields["cpu"] == os.cpu_count()
    # Over all scrapes: on a busy machine a page may be late by a large part of the interval.
    confirmed = [sample.fields for sample in samples[1:] if "cpu_usage" in sample.fields]
    assert len(confirmed) >= 3
    elapsed_ms = sum(fields["elapsed_time"] for fields in confirmed)
    usage = sum(fields["elapsed_cpu_time"] for fields in confirmed) / (elapsed_ms * 1e6)
    assert 0 < usage <= sample.fields["cpu"] * 1.1
    assert 0 < sample.fields["mem_usage"] < sample.fields["mem"]
    assert sample.fields["vm_number"] == 1
    test = sample.domains["test"]
    assert (test["cpu"], test["mem"]) == (2.0, 2048.0)
    domain_cpu_ns = sum(sample.domains["test"]["elapsed_cpu_time"] for sample in samples[1:])
    assert domain_cpu_ns / ((sample.time_ms - samples[0].time_ms) * 1e6) == pytest.approx(1.0, rel=0.2)
    assert test["cpu_usage"] > 0
    assert "mem_usage" not in test  # this exporter does not report the usage of guests


# --- contention -------------------------------------------------------------------------------------


def test_pressure_and_memory_trouble_of_the_node_arrive() -> None:
    # A kernel without CONFIG_SCHEDSTATS does not have the queues of its CPUs.
    files = {"psi_cpu": "/proc/pressure/cpu", "psi_memory": "/proc/pressure/memory", "cpu_wait": "/proc/schedstat"}
    expected = {name for name, file in files.items() if Path(file).exists()} | {"swap_in", "oom_kills"}
    rates, last = NodeRates("w1"), {}
    with exporter(NODE_EXPORTER) as node, exporter(LIBVIRT_EXPORTER, "--libvirt.uri=test:///default") as libvirt:

        def has_all() -> bool:
            # A page with the time of the page before gives no sample.
            sample = rates.update(scrape(LabelStub("w1", node, libvirt))).sample
            last.update({} if sample is None else sample.fields)
            return expected <= last.keys()

        # In a shorter time, the counters and the time of a page differ by much of it.
        wait_for(has_all, every=1.0)
    assert not files.keys() - expected & last.keys()
    assert all(0 <= last[name] <= 1 for name in {"psi_cpu", "psi_memory"} & expected)
    assert 0 <= last["swap_in"] < 1e6
    assert last["oom_kills"] >= 0


@contextlib.contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """Processes that want a core each."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def virsh(tmp_path: Path) -> Path:
    """Folder of virsh, from Debian's package if it is not installed."""
    if (installed := which("virsh")) is not None:
        return Path(installed).parent
    try:
        unpack(package("libvirt-clients", "libvirt-clients_*.deb", cache_folder()), tmp_path / "clients")
    except CannotBuildError as error:
        pytest.skip(str(error))
    return tmp_path / "clients" / "usr" / "bin"


def test_wait_of_a_real_vm_arrives_through_a_textfile(tmp_path: Path, virsh: Path) -> None:
    """A guest and other processes want more than the machine has; node_exporter serves what the script wrote."""
    if reason := missing():
        pytest.skip(f"no real guests here: {reason}")
    folder = tmp_path / "textfile"
    folder.mkdir()
    rates, found = NodeRates("w1"), []
    environment = {**os.environ, "PATH": f"{virsh}:{os.environ['PATH']}"}
    with (
        Host() as host,
        exporter(NODE_EXPORTER, f"--collector.textfile.directory={folder}") as node,
        exporter(LIBVIRT_EXPORTER, f"--libvirt.uri={host.uri}") as libvirt,
    ):
        guest = host.boot("vm-1", 160)
        guest.run("burn 120 99 >/dev/null 2>&1 & true")
        script = [ROOT / "misc" / "vcpu-delay.sh", "--connect", host.uri, "--output", folder / "vcpu-delay.prom"]

        def has_wait() -> bool:
            subprocess.run(list(map(str, script)), env=environment, check=True, timeout=60)
            sample = rates.update(scrape(LabelStub("w1", node, libvirt))).sample
            found.extend([sample.domains["vm-1"]] if sample is not None and "vm-1" in sample.domains else [])
            # The first samples may be of a time before the other processes had all started.
            return bool(found) and found[-1].get("cpu_usage", 0.0) > 0.1 and found[-1].get("cpu_wait", 0.0) > 0.05

        with busy_processes(2 * (os.cpu_count() or 1)):
            wait_for(has_wait)
    vm = found[-1]
    # One vCPU.
    assert vm["cpu_wait"] < 1.2
    assert vm["cpu_wait_share"] == pytest.approx(vm["cpu_wait"] / (vm["cpu_wait"] + vm["cpu_usage"]), rel=0.5)
