"""InfluxDB's bad days: faults of the wire from a server of the test, faults of the data from a real one."""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.aggregator.write_queue import WriteQueue
from model.samples import ScrapeSample
from model.store.base import StoreUnavailable
from model.store.influxdb import InfluxStore
from tests.support.servers import ORG, TOKEN, Influxd, influx_server, make_bucket, settings_of_bucket, wait_for

NODE = "http://w1/metrics"
T0 = (int(time.time()) - 3600) * 1000

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def sample(k: int, **fields: float) -> ScrapeSample:
    return ScrapeSample(NODE, T0 + 1000 * k, {"cpu": 64.0, **fields}, {"a": {"cpu": 4.0, "cpu_usage": float(k)}})


def says(status: int, body: str = "", **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body.encode())

    return answer


def hangs(handler: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(3)


def cuts(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n,result,table,_time")
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def server(*answers: Answer) -> Iterator[tuple[InfluxStore, list[tuple[str, bytes]]]]:
    """A store whose server gives these answers, one after the other, the last one for ever."""
    asked: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.path, body))
            answers[min(len(asked), len(answers)) - 1](self)

        def do_GET(self) -> None:
            says(200, "hello")(self)

        def log_message(self, *args: Any) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{listening.server_address[1]}"
    store = InfluxStore(settings_of_bucket(url, "s3cr3t", "o", "b", timeout_s=1.0))
    try:
        yield store, asked
    finally:
        store.close()
        listening.shutdown()
        listening.server_close()


def write(store: InfluxStore, *scraped: ScrapeSample) -> int:
    return store.write([store.encode(one) for one in scraped])


# --- the wire ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (says(429, '{"code":"too many requests","message":"slow down"}', Retry_After="7"), "slow down"),
        (says(503, "overloaded", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"), "overloaded"),
        (says(500, ""), "500"),
        (says(401, '{"code":"unauthorized","message":"unauthorized access"}'), "unauthorized access"),
        (says(404, '{"code":"not found","message":"bucket \\"b\\" not found"}'), "not found"),
        (says(302, "", Location="http://elsewhere.invalid/"), "302"),
        (hangs, "in time"),
        (cuts, "connection|Connection"),
    ],
)
def test_fault_of_the_wire_asks_for_another_try(answer: Answer, words: str) -> None:
    with server(answer) as (store, _), pytest.raises(StoreUnavailable, match=words) as raised:
        write(store, sample(0)) if answer is not cuts else store.read(NODE, 0, 1, ("cpu",))
    assert "s3cr3t" not in str(raised.value)


def test_wish_of_the_server_to_be_left_alone_is_handed_on() -> None:
    with server(says(429, "", Retry_After="7")) as (store, _), pytest.raises(StoreUnavailable) as raised:
        write(store, sample(0))
    assert raised.value.retry_after_s == 7


def test_server_that_is_not_there_is_told_in_words() -> None:
    with server(says(204)) as (store, _):
        pass
    with pytest.raises(StoreUnavailable, match="refused"):
        write(store, sample(0))


def test_one_request_carries_a_whole_round() -> None:
    with server(says(204)) as (store, asked):
        write(store, *(sample(k) for k in range(100)))
    ((path, body),) = asked
    assert body.count(b"\n") == 199
    assert "bucket=b" in path
    assert "precision=ms" in path


def test_request_that_is_too_large_is_halved() -> None:
    too_large = says(413, "request entity too large")
    with server(too_large, too_large, says(204)) as (store, asked):
        assert write(store, *(sample(k) for k in range(8))) == 0
    kept = b"\n".join(body for _, body in asked[2:])
    assert sorted(kept.split(b"\n")) == sorted(asked[0][1].split(b"\n"))


def test_error_behind_a_good_status_is_an_error() -> None:
    body = ",result,table,_time,_value,_field,domain\r\n,_result,0,2026-01-01T00:00:00Z,1,cpu,a\r\n\r\nerror,reference\r\nsomething broke,897\r\n"
    with server(says(200, body)) as (store, _), pytest.raises(StoreUnavailable, match="something broke"):
        store.read(NODE, 0, 10**12, ("cpu",))


def test_values_from_outside_are_no_part_of_a_query() -> None:
    evil = '") |> drop() //'
    with server(says(200, "")) as (store, asked):
        store.read(evil, 0, 10**12, ("cpu",))
    import json

    request = json.loads(asked[0][1])
    assert evil not in request["query"]
    assert evil in json.dumps(request["extern"], ensure_ascii=False).encode().decode("unicode_escape")


def test_web_server_that_is_no_influxdb_is_told() -> None:
    with server(says(200, "")) as (store, _), pytest.raises(StoreUnavailable, match="no InfluxDB"):
        store.check()


def test_token_is_in_no_message_and_no_representation() -> None:
    settings = settings_of_bucket("http://127.0.0.1:1", "s3cr3t", "o", "b")
    assert "s3cr3t" not in repr(settings)


# --- real servers -----------------------------------------------------------------------------------


@pytest.fixture
def influx(tmp_path: Path) -> Iterator[tuple[InfluxStore, Influxd | None]]:
    with influx_server(tmp_path) as (url, token, org, ours):
        bucket = f"faults{time.time_ns()}"
        make_bucket(url, token, org, bucket)
        store = InfluxStore(settings_of_bucket(url, token, org, bucket, timeout_s=5))
        yield store, ours
        store.close()


def test_value_of_another_kind_costs_that_value_alone(
    influx: tuple[InfluxStore, Influxd | None], caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = influx
    integer = store.encode(sample(0))
    # As a bucket of another writer may have it: a field that is an integer there.
    store.write([type(integer)(integer.payload.replace("cpu=64.0", "cpu=64.0,other=1i"), integer.size, integer.points)])
    with caplog.at_level(logging.WARNING):
        assert write(store, sample(1, other=0.5), sample(2)) == 1
        assert write(store, sample(3, other=0.5), sample(4, other=2.5)) == 0
    # Told once, in the server's own words.
    assert len(caplog.records) == 1
    assert "field other of node is left out from now on" in caplog.text
    assert "already exists as type integer" in caplog.text
    period = store.read(NODE, T0, T0 + 10_000, ("cpu", "cpu_usage"))
    assert period.node.time_ms.tolist() == [T0 + 1000 * k for k in range(5)]
    assert period.domains["a"].time_ms.tolist() == [T0 + 1000 * k for k in range(5)]


def test_several_fields_of_another_kind_cost_those_alone(influx: tuple[InfluxStore, Influxd | None]) -> None:
    store, _ = influx
    one = store.encode(sample(0))
    there = one.payload.replace("cpu=64.0", "cpu=64.0,x=1i,y=true").replace("cpu=4.0", 'cpu=4.0,z="text"')
    store.write([type(one)(there, one.size, one.points)])
    mixed = ScrapeSample(NODE, T0 + 1000, {"cpu": 64.0, "x": 1.0, "y": 2.0}, {"a": {"cpu": 4.0, "z": 3.0}})
    assert write(store, mixed, sample(2)) == 3
    period = store.read(NODE, T0, T0 + 10_000, ("cpu",))
    assert period.node.time_ms.size == period.domains["a"].time_ms.size == 3


def test_points_that_are_too_old_for_the_bucket_are_counted(
    influx: tuple[InfluxStore, Influxd | None], caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = influx
    to = store._settings
    make_bucket(to.url, to.token, to.org, f"{to.bucket}-short", retention_s=3600)
    short = InfluxStore(settings_of_bucket(to.url, to.token, to.org, f"{to.bucket}-short"))
    old = ScrapeSample(NODE, T0 - 10**8, {"cpu": 1.0}, {"a": {"cpu": 1.0}})
    now = ScrapeSample(NODE, int(time.time() * 1000), {"cpu": 1.0}, {})
    with caplog.at_level(logging.WARNING):
        assert write(short, old, now) == 2
    assert "dropped 2 of 3 points" in caplog.text
    assert short.last(NODE) == now
    short.close()


def test_line_that_can_not_be_parsed_costs_that_line_alone(
    influx: tuple[InfluxStore, Influxd | None], caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = influx
    scraped = [store.encode(sample(k)) for k in range(40)]
    bad = scraped[17]
    scraped[17] = type(bad)(bad.payload + "\nnode,url=x cpu=what 1", bad.size, bad.points + 1)
    with caplog.at_level(logging.WARNING):
        assert store.write(scraped) == 1
    assert "refused a point for good" in caplog.text
    assert store.read(NODE, T0, T0 + 10**6, ("cpu",)).node.time_ms.size == 40


def test_domain_whose_name_no_tag_can_hold_costs_that_domain_alone(
    influx: tuple[InfluxStore, Influxd | None], caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = influx
    names = ("good", "ends in \\", "line\nbreak", "")
    with caplog.at_level(logging.WARNING):
        assert write(store, ScrapeSample(NODE, T0, {"cpu": 1.0}, {name: {"cpu": 1.0} for name in names})) == 0
    assert "3 domains" in caplog.text
    assert list(store.read(NODE, T0, T0 + 1, ("cpu",)).domains) == ["good"]


def test_wrong_token_and_missing_bucket_are_told(influx: tuple[InfluxStore, Influxd | None]) -> None:
    store, _ = influx
    right = store._settings
    for token, bucket, words in (("wrong", right.bucket, "unauthorized"), (right.token, "nowhere", "not find")):
        other = InfluxStore(settings_of_bucket(right.url, token, right.org, bucket))
        with pytest.raises(StoreUnavailable, match=words):
            other.check()
        with pytest.raises(StoreUnavailable):
            write(other, sample(0))
        other.close()


def test_server_that_is_killed_and_started_again_has_every_tick_once(
    influx: tuple[InfluxStore, Influxd | None],
) -> None:
    store, ours = influx
    if ours is None:
        pytest.skip("the server is not ours to kill")
    write_queue = WriteQueue(store, 10**7)
    for k in range(300):
        write_queue.put(sample(k))
        if k == 100:
            wait_for(lambda: write_queue.counts().queued == 0)
            ours.kill()
        time.sleep(0.002)
    assert write_queue.counts().queued > 0
    ours.start()
    wait_for(lambda: write_queue.counts().queued == 0, 60)
    assert write_queue.close(10)
    period = store.read(NODE, T0, T0 + 10**6, ("cpu", "cpu_usage"))
    assert period.node.time_ms.tolist() == [T0 + 1000 * k for k in range(300)]
    assert period.domains["a"].fields["cpu_usage"].tolist() == [float(k) for k in range(300)]
    assert write_queue.counts().dropped == write_queue.counts().refused == 0


def test_tests_ran_on_a_real_server(influx: tuple[InfluxStore, Influxd | None]) -> None:
    store, ours = influx
    assert store.check().startswith("InfluxDB ")
    assert ours is None or (ours.version and (TOKEN, ORG))
