"""A server that hides VMs: what was read before shows it, as long as the node uses as much as before."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from model.estimator.slicing import SLICE_FIELDS
from model.samples import Period
from model.store.prometheus import PrometheusStore
from tests.support import prometheus_proxy as faults
from tests.support.prometheus import prometheus_server, settings_of
from tests.support.prometheus_fleet import VMS, history
from tests.support.prometheus_proxy import Proxy

READ_S = 30
#: The whole minute before now: reads begin with it.
START_S = int(time.time()) // 60 * 60 - 240
HALF = faults.without(lambda labels, _: labels.get("domain") in {"a", "c"})


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    text = history(START_S - 200, START_S + 240)
    with prometheus_server(tmp_path_factory.mktemp("prometheus"), text) as url, Proxy(url) as running:
        yield running


@pytest.fixture
def store(proxy: Proxy) -> Iterator[PrometheusStore]:
    opened = PrometheusStore(settings_of(proxy.url))
    yield opened
    opened.close()


def read(store: PrometheusStore, k: int, length_s: int = READ_S) -> Period:
    start_ms = (START_S + k * READ_S) * 1000
    return store.read("w1", start_ms, start_ms + length_s * 1000, SLICE_FIELDS)


def booked(period: Period) -> set[float]:
    """The share that is booked at the samples of a period, without those at which it is unknown."""
    return set(period.node.fields["oc_cpu"][~np.isnan(period.node.fields["oc_cpu"])].tolist())


ALL = {sum(vcpus for vcpus, _ in VMS.values()) / 16}


def test_vms_that_a_server_hides_are_unknown_in_all_reads_that_follow(proxy: Proxy, store: PrometheusStore) -> None:
    assert booked(read(store, 0)) == ALL
    with proxy.failing(HALF):
        for k in (1, 2, 3):
            period = read(store, k)
            assert booked(period) == set()
            assert not period.domains
            assert not np.isnan(period.node.fields["cpu_usage"]).any()
    assert booked(read(store, 4)) == ALL


def test_read_that_is_repeated_is_compared_again(proxy: Proxy, store: PrometheusStore) -> None:
    read(store, 0)
    with proxy.failing(faults.html(502)), pytest.raises(Exception, match="502"):
        read(store, 1)
    with proxy.failing(HALF):
        assert booked(read(store, 1)) == set()
        # It is read from the server again.
        store._groups.clear()
        assert booked(read(store, 1)) == set()


def test_looks_at_the_last_minutes_do_not_replace_what_slices_are_compared_with(
    proxy: Proxy, store: PrometheusStore
) -> None:
    read(store, 0)
    with proxy.failing(HALF):
        for length_s in range(8, 20):
            # Nothing is known of the time before: they believe what they see.
            assert booked(read(store, 1, length_s)) != ALL
        assert booked(read(store, 1)) == set()
