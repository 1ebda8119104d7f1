"""Real guests that want more CPU than the machine has: what is measured, and what is published."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.store.sqlite import SqliteStore
from tests.conftest import ROOT, bare_environment, strict_json
from tests.integration.test_real_exporters import NODE_EXPORTER, exporter, put
from tests.support.guests import Guest, Host, missing
from tests.support.servers import wait_for
from tests.system.test_whole_system import Daemon, page_of

#: More busy vCPUs than the machine has cores.
VCPUS = max(2, (os.cpu_count() or 2))
BURN_S = 75
SLICE_S = 10
COMPARED_S = 25.0


@pytest.fixture(scope="module")
def guests() -> Iterator[list[Guest]]:
    if reason := missing():
        pytest.skip(reason)
    with Host() as host:
        yield [host.boot(name, 192, vcpus=VCPUS) for name in ("one", "two")]


def page_of_all(guests: Sequence[Guest]) -> bytes:
    """A page of vmprobe with all guests: the node's lines are on it once."""
    lines = dict.fromkeys(line for guest in guests for line in page_of(guest).splitlines() if b"_domain_" in line)
    node = [line for line in page_of(guests[0]).splitlines() if b"_domain_" not in line]
    return b"\n".join([*node, *lines]) + b"\n"


@contextlib.contextmanager
def probed(guests: Sequence[Guest], folder: Path) -> Iterator[None]:
    """Write the files for node_exporter's textfile collector each second."""
    import libvirt

    stop = threading.Event()
    command = [ROOT / "misc/vcpu-delay.sh", "--connect", guests[0].host.uri, "--output", folder / "vcpu.prom"]

    def write() -> None:
        with contextlib.suppress(libvirt.libvirtError, OSError):
            put(folder, page_of_all(guests))
        subprocess.run(command, capture_output=True, timeout=30, check=False)

    def write_all() -> None:
        while not stop.wait(0.7):
            write()

    write()
    writer = threading.Thread(target=write_all)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def schedstat(guest: Guest) -> tuple[float, float]:
    """Seconds for which the vCPUs of a guest ran and waited, as the kernel counts them."""
    run = wait = 0.0
    for task in Path(f"/proc/{guest.qemu_pid}/task").iterdir():
        if (task / "comm").read_text().startswith("CPU "):
            ran, waited, _ = (task / "schedstat").read_text().split()
            run, wait = run + int(ran) / 1e9, wait + int(waited) / 1e9
    return run, wait


class Counted:
    """What the kernel counted for the vCPUs of guests, by time."""

    def __init__(self) -> None:
        self._readings: dict[str, list[tuple[float, float, float]]] = {}

    def read(self, guest: Guest) -> None:
        """Note the counters of a guest."""
        self._readings.setdefault(guest.name, []).append((time.time() * 1000, *schedstat(guest)))

    def pairs(self, guest: Guest) -> Iterator[tuple[Sequence[float], Sequence[float]]]:
        """Times, ms, with the seconds for which its vCPUs ran, and then with those for which they waited."""
        times, run, wait = zip(*self._readings[guest.name], strict=True)
        yield times, run
        yield times, wait


@contextlib.contextmanager
def counting(guests: Sequence[Guest]) -> Iterator[Counted]:
    """Read the kernel's counters all the time."""
    counted, stop = Counted(), threading.Event()

    def read_all() -> None:
        while not stop.wait(0.1):
            for guest in guests:
                counted.read(guest)

    reader = threading.Thread(target=read_all)
    reader.start()
    try:
        yield counted
    finally:
        stop.set()
        reader.join()


def test_waits_of_real_guests_are_measured_and_close_the_node(guests: list[Guest], tmp_path: Path) -> None:
    folder = tmp_path / "textfile"
    folder.mkdir()
    with contextlib.ExitStack() as opened:
        opened.enter_context(probed(guests, folder))
        url = opened.enter_context(exporter(NODE_EXPORTER, f"--collector.textfile.directory={folder}"))
        env = {
            **bare_environment(),
            "AGGREG_STUB_LIST": json.dumps([[url, "vmprobe"]]),
            "AGGREG_FETCH_DELAY": "1",
            "SCHED_SCOPE_S": str(SLICE_S),
            "SCHED_SCOPE_SLICE_S": str(SLICE_S),
            "SCHED_SCOPE_INIT_FETCH_PREVIOUS": "0",
            "SCHED_SETTLE_S": "1",
            "SCHED_CONTENTION_CHECK_S": "3",
            "STATE_ENDPOINT": str(tmp_path / "status.json"),
            "STORE_PATH": str(tmp_path / "store.sqlite"),
        }
        aggregator = opened.enter_context(Daemon(env, tmp_path, "vmaggreg.py"))
        estimator = opened.enter_context(Daemon(env, tmp_path, "scroogevm.py"))

        def node() -> Any:
            with contextlib.suppress(FileNotFoundError):
                published = strict_json(Path(env["STATE_ENDPOINT"]).read_bytes())[url]
                return published if published["cpu"]["state"] == "ok" else None
            return None

        wait_for(node, 90)
        for guest in guests:
            guest.run(f"for i in $(seq {VCPUS}); do burn {BURN_S} 99 >/dev/null 2>&1 & done")
        began = time.monotonic()
        # The first seconds belong to the guests' start.
        time.sleep(4)
        begin_ms = time.time() * 1000
        counted = opened.enter_context(counting(guests))
        closed = wait_for(lambda: (n := node()) and n["cpu"]["contention"]["level"] == "high" and n, 60)
        assert time.monotonic() - began < 60
        assert (closed["free_cpu"], closed["cpu"]["closed"]) == (0.0, True)
        assert set(closed["cpu"]["contention"]["vms"]) <= {guest.name for guest in guests}
        assert closed["cpu"]["contention"]["waiting_vms"] > 0
        time.sleep(max(0.0, COMPARED_S - (time.time() - begin_ms / 1000)))
        store = SqliteStore(Path(env["STORE_PATH"]), 86400)
        fields = ("cpu_wait", "cpu_wait_share", "cpu_usage")
        domains = store.read(url, int(begin_ms), int(time.time() * 1000), fields).domains
        store.close()
        for guest in guests:
            samples = domains[guest.name]
            share, wait = samples.fields["cpu_wait_share"], samples.fields["cpu_wait"]
            known = ~np.isnan(share) & (share > 0)
            assert np.count_nonzero(known) >= 4
            # A rate covers the time since the rate before it.
            times, share, wait = samples.time_ms[known], share[known][1:], wait[known][1:]
            waits, total = (np.diff(times) * wait).sum(), (np.diff(times) * wait / share).sum()
            ran, waited = (np.diff(np.interp(times[[0, -1]], *pair))[0] for pair in counted.pairs(guest))
            assert waits / total == pytest.approx(waited / (waited + ran), rel=0.05), guest.name
        assert (estimator.end(), aggregator.end()) == (0, 0)
