"""Providers and servers that fail, hang or are gone."""

from __future__ import annotations

import logging
import threading
import time
import uuid

import pytest

from model.publishers.placement.reconciler import PlacementReconciler
from model.publishers.settings import Token
from tests.support.placement import (
    CPU,
    MEM,
    NODE,
    Clock,
    between,
    capacity_of,
    check,
    ratios,
    settings,
)
from tests.support.servers import PlacementServer, wait_for


def test_missing_provider_is_logged_once_and_the_others_are_updated(
    server: PlacementServer, host: str, event_log: pytest.LogCaptureFixture
) -> None:
    providers = [server.provider(f"{host}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in range(12)]
    nodes = {f"node{k}": provider for k, provider in enumerate(providers)}
    nodes |= {"by-name": f"{host}-nowhere", "by-uuid": str(uuid.uuid4())}
    placement = PlacementReconciler(settings(server.url, nodes))
    for cores in (12.0, 16.0):
        done = placement.publish([capacity_of(node, cores, None) for node in [*nodes, "unmapped"]])
        assert done.failed == {"by-name": "missing", "by-uuid": "missing"}
        assert [ratios(server, provider)[0] for provider in providers] == [cores / 8] * 12
    assert placement.counts().failures == {"missing": 4}
    assert len(event_log.records) == 2
    server.provider(f"{host}-nowhere", VCPU=CPU)
    assert set(placement.publish([capacity_of("by-name", 12.0, None)]).updated) == {"by-name"}
    assert event_log.records[-1].getMessage() == "by-name: recovered"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((403, '{"errors": [{"detail": "Policy does not allow it"}]}'), "forbidden"),
        ((401, ""), "login"),
        ((500, "<html>"), "server"),
        ((302, ""), "refused"),
        ((200, "[]"), "answer"),
        ((200, "{}"), "answer"),
        ((200, '{"resource_provider_generation": 1, "inventories": {"VCPU": 7}}'), "answer"),
        ((200, "not JSON"), "answer"),
    ],
)
def test_invalid_response_affects_only_its_provider(
    server: PlacementServer, host: str, answer: tuple[int, str], reason: str
) -> None:
    good, bad = (server.provider(f"{host}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in "gb")

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        return answer if bad in path else None

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {"bad": bad, "good": good}))
        done = placement.publish([capacity_of("bad", 12.0, 12000.0), capacity_of("good", 12.0, 12000.0)])
    assert (done.updated, done.failed) == (("good",), {"bad": reason})
    assert ratios(server, good) == (1.5, 1.5)
    assert ratios(server, bad) == (3.0, 1.25)


def test_hung_request_delays_no_other_provider_and_is_not_repeated(server: PlacementServer, host: str) -> None:
    good, bad = (server.provider(f"{host}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in "gb")
    release, requests = threading.Event(), []

    def hook(method: str, path: str, token: str) -> None:
        if bad in path:
            requests.append(path)
            release.wait(60)

    def end_after_first_update() -> None:
        wait_for(lambda: placement.counts().updates)
        time.sleep(0.5)
        clock.now_s += 1000

    with between(server, hook) as url:
        clock = Clock()
        placement = PlacementReconciler(settings(url, {"bad": bad, "good": good}, timeout_s=120.0), clock)
        ends = threading.Thread(target=end_after_first_update)
        ends.start()
        for cores in (12.0, 16.0):
            done = placement.publish([capacity_of("bad", cores, None), capacity_of("good", cores, None)])
            assert (done.updated, done.failed) == (("good",), {"bad": "timeout"})
            assert ratios(server, good)[0] == cores / 8
        ends.join()
        assert len(requests) == 1
        release.set()


def test_stop_ends_a_hung_reconciliation(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU)
    stop, release = threading.Event(), threading.Event()

    def hook(method: str, path: str, token: str) -> None:
        if provider in path:
            stop.set()
            release.wait(60)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}, timeout_s=120.0))
        start = time.monotonic()
        done = placement.publish([capacity_of(NODE, 12.0, None)], stop)
        release.set()
    # Without the stop: two minutes.
    assert time.monotonic() - start < 60
    assert not done.updated
    assert not done.failed


def test_unreachable_server_is_logged_once_and_recovers(
    server: PlacementServer, host: str, event_log: pytest.LogCaptureFixture
) -> None:
    nodes = {f"node{k}": server.provider(f"{host}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in range(3)}
    placement = PlacementReconciler(settings(server.url, nodes))
    capacities = [capacity_of(node, 12.0, 12000.0) for node in nodes]
    server.kill()
    try:
        for _ in range(2):
            assert placement.publish(capacities).failed == dict.fromkeys(nodes, "connection")
    finally:
        server.start()
    assert set(placement.publish(capacities).updated) == set(nodes)
    assert [record.getMessage() for record in event_log.records] == [
        "Placement: Connection refused",
        "Placement: recovered",
    ]
    assert placement.counts().failures == {"connection": 6}


def test_frozen_server_is_waited_for_once(server: PlacementServer, host: str) -> None:
    nodes = {f"node{k}": server.provider(f"{host}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in range(10)}
    placement = PlacementReconciler(settings(server.url, nodes, timeout_s=0.5))
    capacities = [capacity_of(node, 12.0, 12000.0) for node in nodes]
    server.freeze()
    try:
        start = time.monotonic()
        assert placement.publish(capacities).failed == dict.fromkeys(nodes, "timeout")
        # Without the first request: two minutes.
        assert time.monotonic() - start < 60
    finally:
        server.thaw()
    placement = PlacementReconciler(settings(server.url, nodes))
    assert set(placement.publish(capacities).updated) == set(nodes)


def test_server_that_freezes_during_an_update_is_a_timeout(server: PlacementServer, host: str) -> None:
    provider = server.provider(host, VCPU=CPU, MEMORY_MB=MEM)

    clock = Clock()

    def hook(method: str, path: str, token: str) -> None:
        if method == "PUT":
            server.freeze()
            clock.now_s += 1000

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}, timeout_s=60.0), clock)
        try:
            assert placement.publish([capacity_of(NODE, 12.0, 12000.0)]).failed == {NODE: "timeout"}
        finally:
            server.thaw()


def test_refused_token_is_logged_once_and_never_shown(
    server: PlacementServer, host: str, event_log: pytest.LogCaptureFixture
) -> None:
    nodes = {f"node{k}": server.provider(f"{host}-{k}", VCPU=CPU) for k in range(3)}
    event_log.set_level(logging.DEBUG)
    config = settings(server.url, nodes, login=Token(server.url, "s3cr3t"))
    placement = PlacementReconciler(config)
    assert placement.publish([capacity_of(node, 12.0, None) for node in nodes]).failed == dict.fromkeys(
        nodes, "forbidden"
    )
    warnings = [record.getMessage() for record in event_log.records if record.levelno >= logging.WARNING]
    (warning,) = warnings
    assert "Placement: HTTP status 403" in warning
    ((_, ok, message),) = check(config)
    assert not ok
    assert "403" in message
    shown = f"{config!r} {placement!r} {message} {placement.counts()!r} {event_log.text}"
    assert "s3cr3t" not in shown


def test_server_that_is_not_placement_is_an_error(server: PlacementServer) -> None:
    with between(server, lambda *_: (200, "hello")) as url:
        placement = PlacementReconciler(settings(url, {NODE: "x"}))
        assert placement.publish([capacity_of(NODE, 1.0, 1.0)]).failed == {NODE: "answer"}
    with between(
        server, lambda *_: (406, '{"errors": [{"detail": "x\\n\\nUnacceptable version header: 1.26"}]}')
    ) as url:
        placement = PlacementReconciler(settings(url, {NODE: "x"}))
        assert placement.publish([capacity_of(NODE, 1.0, 1.0)]).failed == {NODE: "refused"}
        assert "1.26" in placement.counts().last_error
