"""The exporters that sites run, as Debian packages them, scraped for real."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from misc.fakeworkers.machines import Plan, Shapes, build_worker
from misc.fakeworkers.pages import render_vmprobe
from model.aggregator.metrics import AggregatorMetrics
from model.aggregator.scrape_manager import ScrapeManager
from model.aggregator.scraper import ScrapeError, Scraper, open_session
from model.aggregator.settings import AggregatorSettings
from model.common.targets import LabelStub, Stub, VmprobeStub
from model.samples import Scrape, ScrapeSample
from model.store.settings import StoreSettings
from tests.conftest import SHARED
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
    async def ask() -> Scrape:
        async with open_session(5.0) as session:
            return await Scraper(stub, session, 5.0, 2**23).scrape()

    return asyncio.run(ask())


def test_generated_page_comes_through_node_exporter_whole(textfile: tuple[str, Path]) -> None:
    url, folder = textfile
    worker = build_worker(Plan(workers=1, vms=12), Shapes(1), 0)
    now_ms = int(time.time()) * 1000
    put(folder, render_vmprobe(worker, now_ms))
    found = scrape(VmprobeStub(url, url, "vmprobe"))
    assert found.epoch_ms == now_ms
    assert len(found.domains or {}) == 12
    # The exporter writes large numbers with exponents: all their digits are there.
    assert str(int(found.node["cpu_user"])).encode() in render_vmprobe(worker, now_ms)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared folder with captured pages is not here")
def test_captured_pages_come_through_node_exporter_unchanged(textfile: tuple[str, Path]) -> None:
    from model.aggregator.vmprobe import VmprobePages

    url, folder = textfile
    for page in sorted((SHARED / "captures").glob("vmprobe_*.prom")):
        put(folder, page.read_bytes())
        assert scrape(VmprobeStub(url, url, "vmprobe")) == VmprobePages("vmprobe").read(page.read_bytes())


def test_file_that_is_being_written_is_a_missed_scrape(textfile: tuple[str, Path]) -> None:
    url, folder = textfile
    stub = VmprobeStub(url, url, "vmprobe")
    page = render_vmprobe(build_worker(Plan(workers=1, vms=3), Shapes(1), 0), int(time.time()) * 1000)
    put(folder, page)
    whole = scrape(stub)
    for part in (b"", page[:200], page[: len(page) // 2]):
        put(folder, part)
        with pytest.raises(ScrapeError):
            scrape(stub)
    put(folder, page)
    assert scrape(stub) == whole


def test_name_with_a_dot_makes_the_exporter_drop_the_page_and_is_told(textfile: tuple[str, Path]) -> None:
    url, folder = textfile
    page = render_vmprobe(build_worker(Plan(workers=1, vms=3), Shapes(1), 0), int(time.time()) * 1000)
    put(folder, page + b"vmprobe_domain_web.1_cpu_alloc 2\n")
    with pytest.raises(ScrapeError, match="no metric of prefix"):
        scrape(VmprobeStub(url, url, "vmprobe"))


def test_node_and_domains_of_label_exporters_are_rated() -> None:
    """libvirt's own test driver has a VM of 2 vCPUs and 2 GB whose CPU time is the time of day."""
    with exporter(NODE_EXPORTER) as node, exporter(LIBVIRT_EXPORTER, "--libvirt.uri=test:///default") as libvirt:
        scraped: list[ScrapeSample] = []
        chosen = AggregatorSettings(
            (LabelStub("w1", node, libvirt),), 0.5, 5.0, 2**23, 2**20, 0, "", StoreSettings(None, Path("unused"), 1)
        )

        async def for_a_while() -> None:
            stop = asyncio.Event()
            asyncio.get_running_loop().call_later(3, stop.set)
            await ScrapeManager(chosen, scraped.append, AggregatorMetrics(CollectorRegistry())).run(stop)

        asyncio.run(for_a_while())
    sample = scraped[-1]
    assert sample.fields["cpu"] == os.cpu_count()
    # The kernel counts in hundredths of a second: on a quiet machine half a second may show none.
    usages = [sample.fields["cpu_usage"] for sample in scraped[1:]]
    assert 0 < max(usages) <= sample.fields["cpu"] * 1.1
    assert 0 < sample.fields["mem_usage"] < sample.fields["mem"]
    assert sample.fields["vm_number"] == 1
    test = sample.domains["test"]
    assert (test["cpu"], test["mem"]) == (2.0, 2048.0)
    assert test["cpu_usage"] == pytest.approx(1.0, rel=0.2)
    assert "mem_usage" not in test  # this exporter does not know what a guest uses
