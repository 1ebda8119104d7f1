"""OpenStack Placement, a real one: ratios come out right whatever else goes on there."""

from __future__ import annotations

import contextlib
import http.server
import io
import itertools
import json
import logging
import re
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.common.environment import Environment
from model.publishers.placement.client import PlacementError
from model.publishers.placement.ratio import NodeCapacity, allocation_ratio
from model.publishers.placement.reconciler import PlacementReconciler
from model.publishers.settings import Keystone, PlacementSettings, Token, placement_settings
from tests.conftest import ROOT
from tests.support.servers import PlacementServer, free_port, placement_server

NODE = "http://w1:9100/metrics"
#: Every field differs from what a PUT without it would make of it.
CPU = {"total": 10, "reserved": 2, "min_unit": 2, "max_unit": 6, "step_size": 2, "allocation_ratio": 3.0}
MEM = {"total": 9000, "reserved": 1000, "min_unit": 64, "max_unit": 4096, "step_size": 64, "allocation_ratio": 1.25}
OTHERS = {
    "PCPU": {"total": 4, "reserved": 4, "min_unit": 1, "max_unit": 4, "step_size": 1, "allocation_ratio": 1.0},
    "DISK_GB": {"total": 99, "reserved": 7, "min_unit": 3, "max_unit": 90, "step_size": 3, "allocation_ratio": 1.7},
}

Hook = Callable[[str, str, str], "tuple[int, str] | None"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacementServer]:
    with placement_server(tmp_path_factory.mktemp("placement")) as ours:
        ours.call("PUT", "/resource_classes/CUSTOM_LICENCE")
        yield ours


@pytest.fixture
def name() -> str:
    return f"host-{uuid.uuid4().hex[:8]}"


def settings(url: str, providers: dict[str, str], **others: Any) -> PlacementSettings:
    return PlacementSettings(
        **{
            **{"providers": providers, "login": Token(url, "admin"), "ca_file": ""},
            **{"timeout_s": 20.0, "round_timeout_s": 120.0, "least_ratio": 1.0, "most_ratio": 16.0},
            **others,
        }
    )


def ratios(server: PlacementServer, provider: str) -> tuple[float, float]:
    found = server.inventories(provider)
    return found["VCPU"]["allocation_ratio"], found["MEMORY_MB"]["allocation_ratio"]


def generation(server: PlacementServer, provider: str) -> int:
    return int(server.call("GET", f"/resource_providers/{provider}")["generation"])


def allocate(server: PlacementServer, provider: str) -> None:
    """A VM comes and goes; both raise the generation."""
    consumer = uuid.uuid4()
    body = {
        "allocations": {provider: {"resources": {"VCPU": 2}}},
        **{"project_id": "p", "user_id": "u", "consumer_generation": None, "consumer_type": "INSTANCE"},
    }
    server.call("PUT", f"/allocations/{consumer}", body)
    server.call("DELETE", f"/allocations/{consumer}")


@contextlib.contextmanager
def between(server: PlacementServer, hook: Hook) -> Iterator[str]:
    """The URL of a proxy that asks the hook first: what that answers is the answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text = hook(self.command, self.path, self.headers.get("X-Auth-Token", "")) or self.hand_on(body)
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

        do_GET = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815  # names of the library's

        def hand_on(self, body: bytes) -> tuple[int, str]:
            names = ("X-Auth-Token", "OpenStack-API-Version", "Content-Type")
            headers = {name: self.headers[name] for name in names if name in self.headers}
            request = urllib.request.Request(server.url + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=30) as response:
                    return response.status, response.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        def log_message(self, *args: Any) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        listening.server_close()


# --- what is written ----------------------------------------------------------------------------------


def test_ratios_are_set_and_nothing_else_is_touched(server: PlacementServer, name: str) -> None:
    licence = {"total": 5, "reserved": 1, "min_unit": 1, "max_unit": 2, "step_size": 1, "allocation_ratio": 0.5}
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM, CUSTOM_LICENCE=licence, **OTHERS)
    done = PlacementReconciler(settings(server.url, {NODE: provider})).publish([NodeCapacity(NODE, 12.0, 12000.0)])
    assert (done.updated, done.unchanged, done.failed) == ((NODE,), (), {})
    # 12 / (10 - 2) and 12000 / (9000 - 1000)
    assert server.inventories(provider) == {
        **{"VCPU": {**CPU, "allocation_ratio": 1.5}, "MEMORY_MB": {**MEM, "allocation_ratio": 1.5}},
        **{"CUSTOM_LICENCE": licence, **OTHERS},
    }


def test_resource_of_which_nothing_is_said_stays(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}))
    placement.publish([NodeCapacity(NODE, 16.0, None)])
    assert ratios(server, provider) == (2.0, 1.25)
    placement.publish([NodeCapacity(NODE, None, 16000.0)])
    assert ratios(server, provider) == (2.0, 2.0)
    assert placement.publish([NodeCapacity(NODE, None, None)]).unchanged == (NODE,)


def test_nothing_is_written_when_nothing_changes(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}))
    placement.publish([NodeCapacity(NODE, 13.9, 9001.0)])
    before = generation(server, provider)
    done = placement.publish([NodeCapacity(NODE, 13.2, 9001.5)])
    assert (done.updated, done.unchanged) == ((), (NODE,))
    assert generation(server, provider) == before
    assert placement.counts().updates == 1


@pytest.mark.parametrize(("allowed", "expected"), [(False, (1.0, 1.0)), (True, (0.5, 0.0001))])
def test_ratio_falls_below_one_only_when_asked(
    server: PlacementServer, name: str, allowed: bool, expected: tuple[float, float]
) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    environment = Environment(
        {
            **{"PLACEMENT_PROVIDERS": json.dumps({NODE: provider}), "PLACEMENT_TOKEN": "admin"},
            **{"PLACEMENT_ENDPOINT": server.url, "PLACEMENT_ALLOW_BELOW_ONE": str(int(allowed))},
        }
    )
    read = placement_settings(environment)
    assert read is not None
    assert not PlacementReconciler(read).publish([NodeCapacity(NODE, 4.0, 0.0)]).failed
    assert ratios(server, provider) == expected


def test_ratio_above_the_highest_is_cut_and_told_once(
    server: PlacementServer, name: str, event_log: pytest.LogCaptureFixture
) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}, most_ratio=4.0))
    for _ in range(3):
        placement.publish([NodeCapacity(NODE, 80.0, 16000.0)])
    assert ratios(server, provider) == (4.0, 2.0)
    assert [record.getMessage() for record in event_log.records] == [f"{NODE} VCPU: ratio 10 is limited to 4"]
    placement.publish([NodeCapacity(NODE, 16.0, 16000.0)])
    assert "VCPU: recovered" in event_log.records[-1].getMessage()


def test_total_that_changes_changes_the_ratio(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}))
    placement.publish([NodeCapacity(NODE, 12.0, 12000.0)])
    body = server.call("GET", f"/resource_providers/{provider}/inventories")
    body["inventories"]["VCPU"].update(total=8, reserved=0)
    body["inventories"]["MEMORY_MB"].update(reserved=3000)
    server.call("PUT", f"/resource_providers/{provider}/inventories", body)
    placement.publish([NodeCapacity(NODE, 12.0, 12000.0)])
    assert ratios(server, provider) == (1.5, 2.0)


@pytest.mark.parametrize(
    ("inventories", "words"),
    [
        ({"MEMORY_MB": MEM}, "the provider has no such inventory"),
        ({"VCPU": {**CPU, "reserved": 10}, "MEMORY_MB": MEM}, "the inventory is reserved entirely"),
    ],
)
def test_resource_that_has_no_ratio_is_told_once_and_the_other_is_set(
    server: PlacementServer, name: str, inventories: Any, words: str, event_log: pytest.LogCaptureFixture
) -> None:
    provider = server.provider(name, **inventories)
    placement = PlacementReconciler(settings(server.url, {NODE: provider}))
    for _ in range(2):
        assert not placement.publish([NodeCapacity(NODE, 12.0, 12000.0)]).failed
    found = server.inventories(provider)
    assert found == {**inventories, "MEMORY_MB": {**MEM, "allocation_ratio": 1.5}}
    assert [record.getMessage() for record in event_log.records] == [f"{NODE} VCPU: {words}"]


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -1.0])
def test_what_is_no_amount_is_not_promised(server: PlacementServer, name: str, amount: float) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    PlacementReconciler(settings(server.url, {NODE: provider})).publish([NodeCapacity(NODE, amount, 12000.0)])
    assert ratios(server, provider) == (3.0, 1.5)


def test_placement_takes_as_many_vcpus_as_were_promised_and_no_more(server: PlacementServer, name: str) -> None:
    """3 cores, 8 promised: a ratio that is merely cut off, 2.6666, would take 7."""
    provider = server.provider(name, VCPU={"total": 3})
    PlacementReconciler(settings(server.url, {NODE: provider})).publish([NodeCapacity(NODE, 8.9, None)])

    def take(vcpus: int) -> bool:
        allocations = {provider: {"resources": {"VCPU": 1}}}
        about = {"project_id": "p", "user_id": "u", "consumer_generation": None, "consumer_type": "INSTANCE"}
        try:
            for _ in range(vcpus):
                server.call("PUT", f"/allocations/{uuid.uuid4()}", {"allocations": allocations, **about})
        except urllib.error.HTTPError:
            return False
        return True

    assert take(8)
    assert not take(1)


@given(st.floats(0, 99), st.integers(1, 2**22), st.booleans())
def test_capacity_never_exceeds_the_promise_and_is_close_to_it(share: float, usable: int, whole: bool) -> None:
    amount = float(int(share * usable)) if whole else share * usable
    ratio = allocation_ratio(amount, usable)
    assert round(ratio, 4) == ratio
    assert int(usable * ratio) <= amount + 1e-6
    # Nothing is lost of the cores of a node of less than 5000; of memory less than a step is lost.
    lost = int(amount) - usable * ratio
    assert lost <= (0 if usable < 5000 else usable / 10_000)


# --- others write, too --------------------------------------------------------------------------------


def test_allocation_between_read_and_write_is_a_conflict_that_is_overcome(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM, **OTHERS)
    came = []

    def hook(method: str, path: str, token: str) -> None:
        if method == "PUT" and len(came) < 3:
            came.append(path)
            # Also what was read is no longer so.
            body = server.call("GET", f"/resource_providers/{provider}/inventories")
            body["inventories"]["VCPU"]["reserved"] = len(came)
            server.call("PUT", f"/resource_providers/{provider}/inventories", body)
            allocate(server, provider)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}))
        assert placement.publish([NodeCapacity(NODE, 14.0, 12000.0)]).updated == (NODE,)
    assert placement.counts().conflicts == 3
    found = server.inventories(provider)
    assert found["VCPU"] == {**CPU, "reserved": 3, "allocation_ratio": 2.0}
    assert {kind: found[kind] for kind in OTHERS} == OTHERS


def test_ratio_is_right_while_vms_come_and_go_all_the_time(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU={**CPU, "total": 1000}, MEMORY_MB=MEM, **OTHERS)
    enough = threading.Event()
    came: list[int] = []
    writes = itertools.count()

    def every_fourth_write_waits_for_a_vm(method: str, path: str, _token: str) -> None:
        """Or how often one comes in between would be left to the machine."""
        if method == "PUT" and path.endswith("/inventories") and next(writes) % 4 == 0:
            before, deadline = len(came), time.monotonic() + 5
            while len(came) == before and time.monotonic() < deadline:
                time.sleep(0.002)

    def scheduler() -> None:
        while not enough.wait(0.1):
            # It may well lose against us: its client would try again.
            with contextlib.suppress(urllib.error.HTTPError):
                allocate(server, provider)
                came.append(1)

    busy = threading.Thread(target=scheduler)
    busy.start()
    try:
        with between(server, every_fourth_write_waits_for_a_vm) as url:
            placement = PlacementReconciler(settings(url, {NODE: provider}))
            for cores in range(1001, 1021):
                done = placement.publish([NodeCapacity(NODE, float(cores), 12000.0)])
                assert not done.failed, placement.counts()
                assert int(998 * ratios(server, provider)[0]) == cores
    finally:
        enough.set()
        busy.join()
    counts = placement.counts()
    assert counts.conflicts >= 3
    assert len(came) > 3
    found = server.inventories(provider)
    assert {**found["VCPU"], "allocation_ratio": 0} == {**CPU, "total": 1000, "allocation_ratio": 0}
    assert found["MEMORY_MB"] == {**MEM, "allocation_ratio": 1.5}
    assert {kind: found[kind] for kind in OTHERS} == OTHERS


def test_endless_conflicts_end(server: PlacementServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.publishers.placement.reconciler._LONGEST_PAUSE_S", 0.02)
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)

    def hook(method: str, path: str, token: str) -> None:
        if method == "PUT":
            allocate(server, provider)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}))
        assert placement.publish([NodeCapacity(NODE, 12.0, 12000.0)]).failed == {NODE: "conflict"}
    assert placement.counts().failures == {"conflict": 1}
    assert ratios(server, provider) == (3.0, 1.25)


def test_conflict_of_another_kind_is_told_and_not_tried_again(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU)
    said = {"errors": [{"status": 409, "detail": "x\n\n Inventory in use", "code": "placement.inventory.inuse"}]}
    writes = []

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        if method != "PUT":
            return None
        writes.append(path)
        return 409, json.dumps(said)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}))
        assert placement.publish([NodeCapacity(NODE, 12.0, None)]).failed == {NODE: "refused"}
    assert len(writes) == 1
    assert placement.counts().last_error == f"{NODE}: HTTP status 409: Inventory in use"


def test_fault_of_the_database_is_tried_again(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU)
    asked = []

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        asked.append((method, path))
        return (500, "deadlock") if asked.count((method, path)) == 1 else None

    with between(server, hook) as url:
        assert PlacementReconciler(settings(url, {NODE: name})).publish([NodeCapacity(NODE, 12.0, None)]).updated == (NODE,)
    assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 1.5
    assert len(asked) == 8


# --- names --------------------------------------------------------------------------------------------


def test_provider_is_found_by_name_and_asked_for_once(server: PlacementServer, name: str) -> None:
    odd = f"{name} & ü/#?"
    provider = server.provider(odd, VCPU=CPU, MEMORY_MB=MEM)
    asked = []

    def hook(method: str, path: str, token: str) -> None:
        asked.append(path)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: odd}))
        placement.publish([NodeCapacity(NODE, 12.0, 12000.0)])
        placement.publish([NodeCapacity(NODE, 16.0, 16000.0)])
    assert ratios(server, provider) == (2.0, 2.0)
    assert sum("?name=" in path for path in asked) == 1


def test_provider_that_is_renamed_is_known_by_its_uuid(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {NODE: name}))
    placement.publish([NodeCapacity(NODE, 12.0, 12000.0)])
    server.call("PUT", f"/resource_providers/{provider}", {"name": f"{name}-new"})
    placement.publish([NodeCapacity(NODE, 16.0, 16000.0)])
    assert ratios(server, provider) == (2.0, 2.0)


def test_provider_that_is_made_anew_under_its_name_is_found(server: PlacementServer, name: str) -> None:
    placement = PlacementReconciler(settings(server.url, {NODE: name}))
    for cores in (12.0, 16.0):
        provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
        assert placement.publish([NodeCapacity(NODE, cores, None)]).updated == (NODE,)
        assert ratios(server, provider)[0] == cores / 8
        server.call("DELETE", f"/resource_providers/{provider}")
    assert placement.publish([NodeCapacity(NODE, 12.0, None)]).failed == {NODE: "missing"}


def test_two_nodes_of_one_provider_are_told_of(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)
    placement = PlacementReconciler(settings(server.url, {"a": provider, "b": name}))
    done = placement.publish([NodeCapacity("a", 12.0, None), NodeCapacity("b", 16.0, None)])
    assert list(done.failed.values()) == ["duplicate"]
    assert len(done.updated) == 1


# --- one fails, the others go on ------------------------------------------------------------------------


def test_missing_provider_is_told_once_and_the_others_are_set(
    server: PlacementServer, name: str, event_log: pytest.LogCaptureFixture
) -> None:
    there = [server.provider(f"{name}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in range(12)]
    nodes = {f"node{k}": provider for k, provider in enumerate(there)}
    nodes |= {"by-name": f"{name}-nowhere", "by-uuid": str(uuid.uuid4())}
    placement = PlacementReconciler(settings(server.url, nodes))
    for cores in (12.0, 16.0):
        done = placement.publish([NodeCapacity(node, cores, None) for node in [*nodes, "unmapped"]])
        assert done.failed == {"by-name": "missing", "by-uuid": "missing"}
        assert [ratios(server, provider)[0] for provider in there] == [cores / 8] * 12
    assert placement.counts().failures == {"missing": 4}
    assert len(event_log.records) == 2
    server.provider(f"{name}-nowhere", VCPU=CPU)
    assert set(placement.publish([NodeCapacity("by-name", 12.0, None)]).updated) == {"by-name"}
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
def test_provider_with_an_odd_answer_is_alone_with_it(
    server: PlacementServer, name: str, answer: tuple[int, str], reason: str
) -> None:
    good, bad = (server.provider(f"{name}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in "gb")

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        return answer if bad in path else None

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {"bad": bad, "good": good}))
        done = placement.publish([NodeCapacity("bad", 12.0, 12000.0), NodeCapacity("good", 12.0, 12000.0)])
    assert (done.updated, done.failed) == (("good",), {"bad": reason})
    assert ratios(server, good) == (1.5, 1.5)
    assert ratios(server, bad) == (3.0, 1.25)


def test_provider_that_never_answers_holds_up_nobody_and_gets_no_second_thread(
    server: PlacementServer, name: str
) -> None:
    good, bad = (server.provider(f"{name}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in "gb")
    free, asked = threading.Event(), []

    def hook(method: str, path: str, token: str) -> None:
        if bad in path:
            asked.append(path)
            free.wait(60)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {"bad": bad, "good": good}, timeout_s=120.0, round_timeout_s=3.0))
        for cores in (12.0, 16.0):
            done = placement.publish([NodeCapacity("bad", cores, None), NodeCapacity("good", cores, None)])
            assert (done.updated, done.failed) == (("good",), {"bad": "timeout"})
            assert ratios(server, good)[0] == cores / 8
        assert len(asked) == 1
        free.set()


def test_stop_ends_a_round_that_hangs(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU)
    stop, free = threading.Event(), threading.Event()

    def hook(method: str, path: str, token: str) -> None:
        if provider in path:
            stop.set()
            free.wait(60)

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}, timeout_s=120.0))
        begun = time.monotonic()
        done = placement.publish([NodeCapacity(NODE, 12.0, None)], stop)
        free.set()
    # The round itself would have taken two minutes.
    assert time.monotonic() - begun < 60
    assert not done.updated
    assert not done.failed


# --- the server as a whole ------------------------------------------------------------------------------


def test_server_that_is_killed_is_told_once_and_comes_back(
    server: PlacementServer, name: str, event_log: pytest.LogCaptureFixture
) -> None:
    there = {f"node{k}": server.provider(f"{name}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in range(3)}
    placement = PlacementReconciler(settings(server.url, there))
    promises = [NodeCapacity(node, 12.0, 12000.0) for node in there]
    server.kill()
    try:
        for _ in range(2):
            assert placement.publish(promises).failed == dict.fromkeys(there, "connection")
    finally:
        server.start()
    assert set(placement.publish(promises).updated) == set(there)
    assert [record.getMessage() for record in event_log.records] == [
        "Placement: Connection refused",
        "Placement: recovered",
    ]
    assert placement.counts().failures == {"connection": 6}


def test_server_that_freezes_is_waited_for_once(server: PlacementServer, name: str) -> None:
    there = {f"node{k}": server.provider(f"{name}-{k}", VCPU=CPU, MEMORY_MB=MEM) for k in range(20)}
    placement = PlacementReconciler(settings(server.url, there, timeout_s=1.0))
    promises = [NodeCapacity(node, 12.0, 12000.0) for node in there]
    server.freeze()
    try:
        begun = time.monotonic()
        assert placement.publish(promises).failed == dict.fromkeys(there, "timeout")
        # The bound of the round is two minutes.
        assert time.monotonic() - begun < 60
    finally:
        server.thaw()
    placement = PlacementReconciler(settings(server.url, there))
    assert set(placement.publish(promises).updated) == set(there)


def test_server_that_freezes_in_the_middle_ends_with_the_round(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU, MEMORY_MB=MEM)

    def hook(method: str, path: str, token: str) -> None:
        if method == "PUT":
            server.freeze()

    with between(server, hook) as url:
        placement = PlacementReconciler(settings(url, {NODE: provider}, timeout_s=60.0, round_timeout_s=3.0))
        try:
            assert placement.publish([NodeCapacity(NODE, 12.0, 12000.0)]).failed == {NODE: "timeout"}
        finally:
            server.thaw()


def test_token_that_is_not_taken_is_told_once_for_all_and_shown_nowhere(
    server: PlacementServer, name: str, event_log: pytest.LogCaptureFixture
) -> None:
    there = {f"node{k}": server.provider(f"{name}-{k}", VCPU=CPU) for k in range(3)}
    event_log.set_level(logging.DEBUG)
    of_us = settings(server.url, there, login=Token(server.url, "s3cr3t"))
    placement = PlacementReconciler(of_us)
    assert placement.publish([NodeCapacity(node, 12.0, None) for node in there]).failed == dict.fromkeys(
        there, "forbidden"
    )
    warnings = [record.getMessage() for record in event_log.records if record.levelno >= logging.WARNING]
    (told,) = warnings
    assert "Placement: HTTP status 403" in told
    with pytest.raises(PlacementError, match="403") as raised:
        placement.check()
    shown = f"{of_us!r} {placement!r} {raised.value!r} {placement.counts()!r} {event_log.text}"
    assert "s3cr3t" not in shown


def test_server_that_is_something_else_is_told(server: PlacementServer) -> None:
    with between(server, lambda *_: (200, "hello")) as url:
        placement = PlacementReconciler(settings(url, {NODE: "x"}))
        assert placement.publish([NodeCapacity(NODE, 1.0, 1.0)]).failed == {NODE: "answer"}
    with between(
        server, lambda *_: (406, '{"errors": [{"detail": "x\\n\\nUnacceptable version header: 1.26"}]}')
    ) as url:
        placement = PlacementReconciler(settings(url, {NODE: "x"}))
        assert placement.publish([NodeCapacity(NODE, 1.0, 1.0)]).failed == {NODE: "refused"}
        assert "1.26" in placement.counts().last_error


def test_check_reads_and_writes_nothing(server: PlacementServer, name: str) -> None:
    provider = server.provider(name, VCPU=CPU)
    before = generation(server, provider)
    assert PlacementReconciler(settings(server.url, {NODE: name})).check().endswith("resource providers: 1")
    assert generation(server, provider) == before
    with pytest.raises(PlacementError, match="other: no resource provider is named"):
        PlacementReconciler(settings(server.url, {NODE: name, "other": f"{name}-nowhere"})).check()


# --- Keystone -------------------------------------------------------------------------------------------


class FakeKeystone:
    """As much of Keystone as hands out tokens and names Placement."""

    def __init__(self) -> None:
        self.catalog = ""
        self.logins: list[Any] = []
        self.status = 201
        self.tokens = ["admin"]
        keystone = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                here = {"id": "v3.14", "status": "stable", "links": [{"rel": "self", "href": keystone.url}]}
                self.say(200, {"version": here})

            def do_POST(self) -> None:
                keystone.logins.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                endpoint = {"interface": "public", "region": "one", "region_id": "one", "url": keystone.catalog}
                token = {
                    **{"methods": ["password"], "user": {"id": "u", "name": "u", "domain": {"id": "d", "name": "D"}}},
                    **{"expires_at": "2999-01-01T00:00:00.000000Z", "issued_at": "2020-01-01T00:00:00.000000Z"},
                    "catalog": [{"type": "placement", "name": "placement", "id": "p", "endpoints": [endpoint]}],
                }
                subject = keystone.tokens[min(len(keystone.logins), len(keystone.tokens)) - 1]
                self.say(keystone.status, {"token": token}, subject)

            def say(self, status: int, body: Any, subject: str = "") -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.send_header("X-Subject-Token", subject)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self.listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.listening.server_address[1]}/v3"
        threading.Thread(target=self.listening.serve_forever, daemon=True).start()


@pytest.fixture
def keystone() -> Iterator[FakeKeystone]:
    fake = FakeKeystone()
    yield fake
    fake.listening.shutdown()
    fake.listening.server_close()


def from_environment(**values: str) -> PlacementSettings:
    environment = Environment(values)
    read = placement_settings(environment)
    assert not environment.faults
    assert read is not None
    return read


def test_keystone_hands_out_a_token_and_names_placement(
    server: PlacementServer, keystone: FakeKeystone, name: str
) -> None:
    provider = server.provider(name, VCPU=CPU)
    keystone.catalog = server.url
    placement = PlacementReconciler(
        from_environment(
            PLACEMENT_PROVIDERS=json.dumps({NODE: name}),
            OS_AUTH_URL=keystone.url,
            OS_USERNAME="scroogevm",
            OS_PASSWORD="s3cr3t",
            OS_PROJECT_NAME="service",
            OS_REGION_NAME="one",
        )
    )
    for cores in (12.0, 16.0):
        assert placement.publish([NodeCapacity(NODE, cores, None)]).updated == (NODE,)
    assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 2.0
    (login,) = keystone.logins
    assert login["auth"]["identity"]["password"]["user"] == {
        **{"name": "scroogevm", "password": "s3cr3t", "domain": {"name": "Default"}}
    }
    assert login["auth"]["scope"]["project"]["name"] == "service"


def test_token_that_has_run_out_is_replaced(server: PlacementServer, keystone: FakeKeystone, name: str) -> None:
    server.provider(name, VCPU=CPU)
    keystone.tokens = ["old", "admin"]

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        return (401, "{}") if token == "old" else None

    with between(server, hook) as url:
        keystone.catalog = url
        placement = PlacementReconciler(
            from_environment(
                PLACEMENT_PROVIDERS=json.dumps({NODE: name}),
                OS_AUTH_TYPE="v3applicationcredential",
                OS_AUTH_URL=keystone.url,
                OS_APPLICATION_CREDENTIAL_ID="id",
                OS_APPLICATION_CREDENTIAL_SECRET="s3cr3t",
            )
        )
        assert placement.publish([NodeCapacity(NODE, 12.0, None)]).updated == (NODE,)
    assert [login["auth"]["identity"]["methods"] for login in keystone.logins] == [["application_credential"]] * 2


@pytest.mark.parametrize("status", [401, 500, 0])
def test_keystone_that_does_not_let_us_in_is_told_in_words(
    server: PlacementServer, keystone: FakeKeystone, status: int, event_log: pytest.LogCaptureFixture
) -> None:
    keystone.status = status
    event_log.set_level(logging.DEBUG)
    placement = PlacementReconciler(
        from_environment(
            PLACEMENT_PROVIDERS='{"a": "b", "c": "d"}',
            OS_AUTH_URL=keystone.url if status else f"http://127.0.0.1:{free_port()}/v3",
            OS_USERNAME="u",
            OS_PASSWORD="s3cr3t",
            OS_PROJECT_NAME="p",
        )
    )
    for _ in range(2):
        done = placement.publish([NodeCapacity("a", 12.0, None), NodeCapacity("c", 12.0, None)])
        assert done.failed == dict.fromkeys("ac", "login" if status else "connection")
    warnings = [record.getMessage() for record in event_log.records if record.levelno >= logging.WARNING]
    assert warnings == [f"Placement: Keystone: HTTP status {status}" if status else "Placement: Connection refused"]
    assert "s3cr3t" not in event_log.text


def test_placement_that_keystone_does_not_know_is_told(server: PlacementServer, keystone: FakeKeystone) -> None:
    keystone.catalog = server.url
    placement = PlacementReconciler(
        from_environment(
            **{"PLACEMENT_PROVIDERS": '{"a": "b"}', "OS_AUTH_URL": keystone.url, "OS_REGION_NAME": "elsewhere"},
            **{"OS_USERNAME": "u", "OS_PASSWORD": "s3cr3t", "OS_PROJECT_NAME": "p"},
        )
    )
    assert placement.publish([NodeCapacity("a", 12.0, None)]).failed == {"a": "login"}
    assert "elsewhere" in placement.counts().last_error


# --- settings -------------------------------------------------------------------------------------------


def test_placement_is_off_by_default() -> None:
    environment = Environment({"OS_AUTH_TYPE": "nonsense", "PLACEMENT_TIMEOUT_S": "x"})
    assert placement_settings(environment) is None
    assert not environment.faults


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({}, ["OS_AUTH_URL", "OS_PASSWORD", "OS_PROJECT_NAME", "OS_USERNAME"]),
        ({"PLACEMENT_TOKEN": "t"}, ["PLACEMENT_TOKEN"]),
        ({"PLACEMENT_TOKEN": "t", "PLACEMENT_ENDPOINT": "http://u:p@h"}, ["PLACEMENT_ENDPOINT"]),
        ({"OS_AUTH_TYPE": "kerberos"}, ["OS_AUTH_TYPE"]),
        (
            {"OS_AUTH_TYPE": "v3applicationcredential", "OS_AUTH_URL": "http://h"},
            ["OS_APPLICATION_CREDENTIAL_ID", "OS_APPLICATION_CREDENTIAL_SECRET"],
        ),
        (
            {
                **{"PLACEMENT_TOKEN": "t", "PLACEMENT_ENDPOINT": "http://h", "PLACEMENT_PROVIDERS": '["x"]'},
                **{"PLACEMENT_MAX_RATIO": "0.5", "PLACEMENT_TIMEOUT_S": "0", "PLACEMENT_ALLOW_BELOW_ONE": "2"},
                **{"PLACEMENT_ROUND_TIMEOUT_S": "x", "OS_CACERT": "/nowhere"},
            },
            [
                *("OS_CACERT", "PLACEMENT_ALLOW_BELOW_ONE", "PLACEMENT_MAX_RATIO", "PLACEMENT_PROVIDERS"),
                *("PLACEMENT_ROUND_TIMEOUT_S", "PLACEMENT_TIMEOUT_S"),
            ],
        ),
    ],
)
def test_every_fault_of_the_settings_is_told_with_its_key(values: dict[str, str], keys: list[str]) -> None:
    environment = Environment({"PLACEMENT_PROVIDERS": '{"a": "b"}', **values})
    placement_settings(environment)
    assert sorted(fault.partition(":")[0] for fault in environment.faults) == keys


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "is not an object"),
        ('{"a": ""}', "a: its provider"),
        ('{"a": 1}', "a: its provider"),
        ('{"": "x"}', "no node"),
        ('{"a": "x", "b": "x"}', "a and b have the same provider"),
        ('{"http://u:p@h": "x", "http://h": "y"}', "http://h is there already"),
    ],
)
def test_mapping_that_makes_no_sense_is_told(text: str, words: str) -> None:
    environment = Environment({"PLACEMENT_PROVIDERS": text, "PLACEMENT_TOKEN": "t", "PLACEMENT_ENDPOINT": "http://h"})
    placement_settings(environment)
    (fault,) = environment.faults
    assert words in fault


def test_password_is_no_part_of_a_node_and_no_secret_is_in_a_representation() -> None:
    read = from_environment(
        PLACEMENT_PROVIDERS='{"http://u:s3cr3t@h/metrics": "x"}',
        **{"OS_AUTH_URL": "http://h", "OS_USERNAME": "u", "OS_PASSWORD": "s3cr3t", "OS_PROJECT_NAME": "p"},
    )
    assert read.providers == {"http://h/metrics": "x"}
    assert isinstance(read.login, Keystone)
    assert read.login.options["password"] == "s3cr3t"
    assert "s3cr3t" not in repr(read)


def test_dotenv_shows_the_defaults_of_placement() -> None:
    from dotenv import dotenv_values

    text = re.sub(r"^#(?=[A-Z0-9_]+=)", "", (ROOT / "dotenv").read_text(), flags=re.M)
    written = dotenv_values(stream=io.StringIO(text))
    given = {
        **{"PLACEMENT_PROVIDERS": '{"a": "b"}', "OS_AUTH_URL": "http://h", "OS_USERNAME": "u"},
        **{"OS_PASSWORD": "p", "OS_PROJECT_NAME": "p"},
    }
    shown = {key: value or "" for key, value in written.items() if key.startswith(("OS_", "PLACEMENT_"))}
    assert from_environment(**{**shown, **given}) == from_environment(**given)
