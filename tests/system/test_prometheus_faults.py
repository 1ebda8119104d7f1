"""The daemon behind a proxy that fails and lies: no figure is higher than with the healthy server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.prometheus import prometheus_server
from tests.support.prometheus_faults import MISSING, PARTIAL, UNAVAILABLE, behind_url
from tests.support.prometheus_fleet import AFTER_S, BEFORE_S, NODES, SLICE_S, Daemon, compared, history, run
from tests.support.prometheus_proxy import SECRET, Proxy
from tests.support.servers import wait_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    now = int(time.time())
    with prometheus_server(tmp_path_factory.mktemp("prometheus"), history(now - BEFORE_S, now + AFTER_S)) as url:
        yield url


@pytest.fixture(scope="module")
def proxy(server: str) -> Iterator[Proxy]:
    with Proxy(server) as running:
        yield running


@pytest.fixture(scope="module")
def daemons(server: str, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    """A daemon on the server, and one behind the proxy."""
    url = behind_url(proxy)
    folder = tmp_path_factory.mktemp("daemons")
    with Daemon(folder / "healthy", server) as healthy, Daemon(folder / "behind", url) as behind:
        wait_for(lambda: healthy.is_fresh(0) and behind.is_fresh(0), 90)
        yield healthy, behind


@pytest.mark.parametrize("name", [*UNAVAILABLE, *MISSING, *PARTIAL])
def test_daemon_publishes_nothing_higher_and_recovers(name: str, proxy: Proxy, daemons: tuple[Daemon, Daemon]) -> None:
    healthy, behind = daemons
    fault = {**UNAVAILABLE, **MISSING, **PARTIAL}[name]
    logged, known = len(behind.log()), dict(behind.nodes())
    with proxy.failing(fault):
        began_s = time.time()
        if name in PARTIAL:
            # Two whole slices that are read while the fault lasts.
            wait_for(lambda: min(behind.figures.newest.values()) >= began_s + 2 * SLICE_S, 60)
        else:
            wait_for(lambda: behind.states() == {"stale"}, 60)
            if name in UNAVAILABLE:
                wait_for(lambda: " WARNING scroogevm.estimator: store: " in behind.log()[logged:])
            for node, one in behind.nodes().items():
                assert (one["free_cpu"], one["free_mem"]) == (0, 0)
                assert one["last_known"]["cpu"]["slice_end"] >= known[node]["slice_end"]
        assert proxy.failed
        assert behind.process.poll() is None
    ended_s = time.time()
    wait_for(lambda: behind.is_fresh(ended_s), 60)
    wait_for(lambda: healthy.is_fresh(ended_s), 60)
    assert compared(healthy, behind, began_s) == set(NODES)
    log = behind.log()[logged:]
    for text in ("Traceback", SECRET, "internal error"):
        assert text not in log
        assert text not in Path(behind.env["STATE_ENDPOINT"]).read_text()
    assert len(log.splitlines()) <= 12, log


def test_server_that_is_replaced_by_an_empty_one_makes_nodes_stale_and_none_is_forgotten(
    server: str, proxy: Proxy, daemons: tuple[Daemon, Daemon], tmp_path: Path
) -> None:
    healthy, behind = daemons
    began_s = time.time()
    with prometheus_server(tmp_path / "empty") as empty:
        proxy.upstream = empty
        wait_for(lambda: behind.states() == {"stale"}, 60)
        assert sorted(behind.nodes()) == list(NODES)
        done = run(tmp_path, proxy.url, "--once")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "none of its 0 nodes can be used" in done.stderr
        proxy.upstream = server
    wait_for(lambda: behind.is_fresh(time.time() - 3 * SLICE_S), 60)
    assert compared(healthy, behind, began_s) == set(NODES)
