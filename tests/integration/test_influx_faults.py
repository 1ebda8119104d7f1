"""Faults of InfluxDB: failing connections from a server of the test, rejected data from a real server."""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from model.aggregator.write_queue import WriteQueue
from model.samples import ScrapeSample
from model.store.base import FleetRow, StoreRefused, StoreUnavailable
from model.store.influxdb import InfluxStore
from tests.support.servers import ORG, TOKEN, Influxd, influx_server, make_bucket, settings_of_bucket, wait_for

NODE = "http://w1/metrics"
T0 = (int(time.time()) - 3600) * 1000

Response = Callable[[http.server.BaseHTTPRequestHandler], None]


def sample(k: int, **fields: float) -> ScrapeSample:
    return ScrapeSample(NODE, T0 + 1000 * k, {"cpu": 64.0, **fields}, {"a": {"cpu": 4.0, "cpu_usage": float(k)}})


def respond(status: int, body: str = "", **headers: str) -> Response:
    def send(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body.encode())

    return send


def hang(handler: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(3)


def cut(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n,result,table,_time")
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def server(*responses: Response) -> Iterator[tuple[InfluxStore, list[tuple[str, bytes]]]]:
    """A store whose server sends these responses in turn, and then repeats the last one; and the requests."""
    requests: list[tuple[str, bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append((self.path, body))
            responses[min(len(requests), len(responses)) - 1](self)

        def do_GET(self) -> None:
            respond(200, "hello")(self)

        def log_message(self, *args: Any) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{listening.server_address[1]}"
    store = InfluxStore(settings_of_bucket(url, "s3cr3t", "o", "b", timeout_s=1.0))
    try:
        yield store, requests
    finally:
        store.close()
        listening.shutdown()
        listening.server_close()


def write(store: InfluxStore, *samples: ScrapeSample) -> int:
    return store.write([store.encode(sample) for sample in samples])


# --- connections ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (respond(429, '{"code":"too many requests","message":"slow down"}', Retry_After="7"), "slow down"),
        (respond(503, "overloaded", Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"), "overloaded"),
        (respond(500, ""), "500"),
        (respond(401, '{"code":"unauthorized","message":"unauthorized access"}'), "unauthorized access"),
        (respond(404, '{"code":"not found","message":"bucket \\"b\\" not found"}'), "not found"),
        (respond(302, "", Location="http://elsewhere.invalid/"), "302"),
        (hang, "no response in time"),
        (cut, "connection|Connection"),
    ],
)
def test_failed_request_may_be_retried(response: Response, message: str) -> None:
    with server(response) as (store, _), pytest.raises(StoreUnavailable, match=message) as raised:
        write(store, sample(0)) if response is not cut else store.read(NODE, 0, 1, ("cpu",))
    assert "s3cr3t" not in str(raised.value)


def test_retry_after_of_the_server_is_passed_on() -> None:
    with server(respond(429, "", Retry_After="7")) as (store, _), pytest.raises(StoreUnavailable) as raised:
        write(store, sample(0))
    assert raised.value.retry_after_s == 7


def test_refused_connection_is_named() -> None:
    with server(respond(204)) as (store, _):
        pass
    with pytest.raises(StoreUnavailable, match="refused"):
        write(store, sample(0))


def test_samples_of_a_round_are_one_request() -> None:
    with server(respond(204)) as (store, requests):
        write(store, *(sample(k) for k in range(100)))
    ((path, body),) = requests
    assert body.count(b"\n") == 199
    assert "bucket=b" in path
    assert "precision=ms" in path


def test_request_that_is_too_large_is_halved() -> None:
    too_large = respond(413, "request entity too large")
    with server(too_large, too_large, respond(204)) as (store, requests):
        assert write(store, *(sample(k) for k in range(8))) == 0
    kept = b"\n".join(body for _, body in requests[2:])
    assert sorted(kept.split(b"\n")) == sorted(requests[0][1].split(b"\n"))


def test_error_after_a_good_status_is_raised() -> None:
    body = ",result,table,_time,_value,_field,domain\r\n,_result,0,2026-01-01T00:00:00Z,1,cpu,a\r\n\r\nerror,reference\r\nsomething broke,897\r\n"
    with server(respond(200, body)) as (store, _), pytest.raises(StoreUnavailable, match="something broke"):
        store.read(NODE, 0, 10**12, ("cpu",))


def test_names_are_parameters_and_not_text_of_a_query() -> None:
    injection = '") |> drop() //'
    with server(respond(200, "")) as (store, requests):
        store.read(injection, 0, 10**12, ("cpu",))
    import json

    request = json.loads(requests[0][1])
    assert injection not in request["query"]
    assert injection in json.dumps(request["extern"], ensure_ascii=False).encode().decode("unicode_escape")


def test_counts_of_a_fleet_that_the_server_refuses_are_not_retried() -> None:
    row = FleetRow("m", T0, {"cpu_nodes": 1.0})
    with server(respond(400, '{"code":"invalid","message":"what"}')) as (store, _), pytest.raises(StoreRefused):
        store.write_fleet(row)
    with server(respond(204)) as (store, requests), pytest.raises(StoreRefused, match="cannot hold the name"):
        store.write_fleet(FleetRow("ends in \\", T0, row.counts))
    assert requests == []
    with server(respond(503, "overloaded")) as (store, _), pytest.raises(StoreUnavailable):
        store.write_fleet(row)
    with server(respond(503, "overloaded")) as (store, _), pytest.raises(StoreUnavailable):
        store.read_fleet(0, 1)


def test_web_server_that_is_not_influxdb_is_refused() -> None:
    with server(respond(200, "")) as (store, _), pytest.raises(StoreUnavailable, match="the server is not InfluxDB"):
        store.check()


def test_token_is_not_in_the_representation_of_the_settings() -> None:
    settings = settings_of_bucket("http://127.0.0.1:1", "s3cr3t", "o", "b")
    assert "s3cr3t" not in repr(settings)


# --- real servers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def influxdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str, Influxd | None]]:
    with influx_server(tmp_path_factory.mktemp("influxd")) as server:
        yield server


@pytest.fixture
def influx(influxdb: tuple[str, str, str, Influxd | None]) -> Iterator[tuple[InfluxStore, Influxd | None]]:
    """A store with a bucket of its own, and the process of its server."""
    url, token, org, server_process = influxdb
    bucket = f"faults{time.time_ns()}"
    make_bucket(url, token, org, bucket)
    store = InfluxStore(settings_of_bucket(url, token, org, bucket, timeout_s=5))
    yield store, server_process
    store.close()


def test_value_of_another_type_is_dropped_alone(
    influx: tuple[InfluxStore, Influxd | None], caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = influx
    integer = store.encode(sample(0))
    # Another writer may have created a field as an integer.
    store.write([type(integer)(integer.payload.replace("cpu=64.0", "cpu=64.0,other=1i"), integer.size, integer.points)])
    with caplog.at_level(logging.WARNING):
        assert write(store, sample(1, other=0.5), sample(2)) == 1
        assert write(store, sample(3, other=0.5), sample(4, other=2.5)) == 0
    # Logged once, with the message of the server.
    assert len(caplog.records) == 1
    assert "field other of node is not stored from now on" in caplog.text
    assert "already exists as type integer" in caplog.text
    period = store.read(NODE, T0, T0 + 10_000, ("cpu", "cpu_usage"))
    assert period.node.time_ms.tolist() == [T0 + 1000 * k for k in range(5)]
    assert period.domains["a"].time_ms.tolist() == [T0 + 1000 * k for k in range(5)]


def test_several_values_of_another_type_are_dropped_alone(influx: tuple[InfluxStore, Influxd | None]) -> None:
    store, _ = influx
    one = store.encode(sample(0))
    there = one.payload.replace("cpu=64.0", "cpu=64.0,x=1i,y=true").replace("cpu=4.0", 'cpu=4.0,z="text"')
    store.write([type(one)(there, one.size, one.points)])
    mixed = ScrapeSample(NODE, T0 + 1000, {"cpu": 64.0, "x": 1.0, "y": 2.0}, {"a": {"cpu": 4.0, "z": 3.0}})
    assert write(store, mixed, sample(2)) == 3
    period = store.read(NODE, T0, T0 + 10_000, ("cpu",))
    assert period.node.time_ms.size == period.domains["a"].time_ms.size == 3


def test_points_older_than_the_retention_of_the_bucket_are_counted(
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
    assert "2 of 3 points are dropped" in caplog.text
    assert short.last(NODE) == now
    short.close()


def test_invalid_line_is_dropped_alone(
    influx: tuple[InfluxStore, Influxd | None], caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = influx
    encoded = [store.encode(sample(k)) for k in range(40)]
    bad = encoded[17]
    encoded[17] = type(bad)(bad.payload + "\nnode,url=x cpu=what 1", bad.size, bad.points + 1)
    with caplog.at_level(logging.WARNING):
        assert store.write(encoded) == 1
    assert "a point is rejected" in caplog.text
    assert store.read(NODE, T0, T0 + 10**6, ("cpu",)).node.time_ms.size == 40


def test_domain_whose_name_a_tag_cannot_hold_is_omitted_alone(
    influx: tuple[InfluxStore, Influxd | None], caplog: pytest.LogCaptureFixture
) -> None:
    store, _ = influx
    names = ("good", "ends in \\", "line\nbreak", "")
    with caplog.at_level(logging.WARNING):
        assert write(store, ScrapeSample(NODE, T0, {"cpu": 1.0}, {name: {"cpu": 1.0} for name in names})) == 0
        write(store, ScrapeSample(NODE, T0 + 1, {"cpu": 1.0}, {name: {"cpu": 1.0} for name in names}))
    assert caplog.text.count("3 domains are not stored") == 1
    assert list(store.read(NODE, T0, T0 + 1, ("cpu",)).domains) == ["good"]


def test_wrong_token_and_missing_bucket_are_reported(influx: tuple[InfluxStore, Influxd | None]) -> None:
    store, _ = influx
    right = store._settings
    for token, bucket, message in (("wrong", right.bucket, "unauthorized"), (right.token, "nowhere", "not find")):
        other = InfluxStore(settings_of_bucket(right.url, token, right.org, bucket))
        with pytest.raises(StoreUnavailable, match=message):
            other.check()
        with pytest.raises(StoreUnavailable):
            write(other, sample(0))
        other.close()


def test_server_that_is_killed_and_restarted_stores_every_sample_once(
    influx: tuple[InfluxStore, Influxd | None],
) -> None:
    store, server_process = influx
    if server_process is None:
        pytest.skip("the tests did not start the server and do not kill it")
    write_queue = WriteQueue(store, 10**7)
    write_queue.start()
    for k in range(300):
        write_queue.put(sample(k))
        if k == 100:
            wait_for(lambda: write_queue.counts().queued == 0)
            server_process.kill()
        time.sleep(0.002)
    assert write_queue.counts().queued > 0
    server_process.start()
    wait_for(lambda: write_queue.counts().queued == 0, 60)
    assert write_queue.close(10)
    period = store.read(NODE, T0, T0 + 10**6, ("cpu", "cpu_usage"))
    assert period.node.time_ms.tolist() == [T0 + 1000 * k for k in range(300)]
    assert period.domains["a"].fields["cpu_usage"].tolist() == [float(k) for k in range(300)]
    assert write_queue.counts().dropped == write_queue.counts().refused == 0


def test_tests_run_with_a_real_server(influx: tuple[InfluxStore, Influxd | None]) -> None:
    store, server_process = influx
    assert store.check().startswith("InfluxDB ")
    assert server_process is None or (server_process.version and (TOKEN, ORG))
