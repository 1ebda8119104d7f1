"""The pages over HTTP: methods, headers, limits against slow clients."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, make_wsgi_app

from model.common import http_server
from model.common.errors import UsageError
from model.common.http_server import serve
from model.publishers.status_file import encode
from model.publishers.status_page.history import History, Snapshot
from model.publishers.status_page.wsgi import application
from tests.support.servers import wait_for
from tests.support.status_pages import EVIL, LAST_S, SLICE_S, VALID_S, Served, ok


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(ok(), ok(EVIL), ok("http://w2").aged(LAST_S))
    yield made
    made.server.close()


@pytest.mark.parametrize("path", ["/", "/?page=1", "/status.json", "/metrics"])
def test_head_equals_get_without_the_body(served: Served, path: str) -> None:
    status, headers, body = served.request("GET", path)
    assert (status, len(body)) == (200, int(headers["content-length"]))
    again, without, nothing = served.request("HEAD", path)
    assert (again, nothing) == (200, b"")
    volatile = {"date"}
    assert {k: v for k, v in without.items() if k not in volatile} == {
        k: v for k, v in headers.items() if k not in volatile
    }


@pytest.mark.parametrize(
    "path", ["/favicon.ico", "/metrics/", "/status.json/x", "/../etc/passwd", "/%2e%2e", "/index.html"]
)
def test_other_paths_are_not_found(served: Served, path: str) -> None:
    assert served.request("GET", path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_not_allowed(served: Served, method: str) -> None:
    status, headers, _ = served.request(method, "/")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics", "/nothing"])
def test_page_loads_nothing_from_other_origins(served: Served, path: str) -> None:
    _, headers, body = served.request("GET", path)
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in headers
    if path == "/":
        assert not re.search(rb"""(src|href|action|url)\s*[=(]\s*["']?\s*(\w+:)?//""", body)
        assert b"<script" not in body


def test_status_json_is_the_text_of_the_status_file(served: Served) -> None:
    _, headers, body = served.request("GET", "/status.json")
    assert headers["content-type"] == "application/json"
    assert body == encode([ok(), ok(EVIL), ok("http://w2").aged(LAST_S)], VALID_S)
    assert list(json.loads(body)) == [ok().node, EVIL, "http://w2"]


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics"])
def test_response_is_compressed_on_request(served: Served, path: str) -> None:
    plain = served.request("GET", path)[2]
    _, headers, packed = served.request("GET", path, Accept_Encoding="br, gzip")
    assert headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed) == plain


def test_metrics_support_openmetrics(served: Served) -> None:
    accepted = "application/openmetrics-text; version=1.0.0"
    _, headers, body = served.request("GET", "/metrics", Accept=accepted)
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_metrics_pass_promtool(served: Served) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on PATH: Debian's package prometheus has it")
    text = served.request("GET", "/metrics")[2]
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_failed_page_is_logged_and_the_others_are_served(caplog: pytest.LogCaptureFixture) -> None:
    kept = History()
    kept.snapshot = Snapshot(None)  # type: ignore[arg-type]
    server = serve("SCHED_METRICS_PORT", 0, "127.0.0.1", application(kept, CollectorRegistry(), SLICE_S, VALID_S))
    try:
        for path, status in (("/", 500), ("/metrics", 200)):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            connection.request("GET", path)
            assert connection.getresponse().status == status
            connection.close()
    finally:
        server.close()
    assert "/: page failed" in caplog.text


@pytest.mark.parametrize(("port", "address"), [(1, "256.256.256.256"), (1, "not an address")])
def test_address_that_is_none_is_a_usage_error(port: int, address: str) -> None:
    with pytest.raises(UsageError, match=rf"^SCHED_METRICS_PORT: cannot listen on port {port}: [^\n]*$"):
        serve("SCHED_METRICS_PORT", port, address, make_wsgi_app(CollectorRegistry()))


def test_address_that_may_appear_later_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    server = serve("SCHED_METRICS_PORT", 8080, "192.0.2.1", make_wsgi_app(CollectorRegistry()))
    assert not server.is_serving
    server.close()
    assert (
        "SCHED_METRICS_PORT: cannot listen on port 8080: Cannot assign requested address; trying again" in caplog.text
    )


def test_port_that_is_in_use_is_served_once_it_is_free(
    event_log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_RETRY_S", 0.02)
    before = threading.active_count()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = serve("SCHED_METRICS_PORT", port, "127.0.0.1", make_wsgi_app(CollectorRegistry()))
        time.sleep(0.2)  # several attempts
        assert not server.is_serving
    wait_for(lambda: server.is_serving)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as response:
        assert response.status == 200
    server.close()
    assert threading.active_count() == before
    subject = f"SCHED_METRICS_PORT: cannot listen on port {port}"
    assert [record.getMessage() for record in event_log.records] == [
        f"{subject}: Address already in use; trying again",
        f"{subject}: recovered",
    ]


def test_ipv6_is_served() -> None:
    server = serve("SCHED_METRICS_PORT", 0, "::1", make_wsgi_app(CollectorRegistry()))
    if not server.is_serving:
        server.close()
        pytest.skip("no IPv6 here")
    try:
        with urllib.request.urlopen(f"http://[::1]:{server.server_port}/", timeout=10) as response:
            assert response.status == 200
    finally:
        server.close()


# --- hostile clients -----------------------------------------------------------------------


def test_slow_clients_do_not_block_others(served: Served) -> None:
    """150 clients send the header of a request byte by byte and never end it."""
    before = threading.active_count()
    slow = [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(150)]
    try:
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\nX-A: b")
        for _ in range(5):
            for connection in slow[-20:]:
                connection.sendall(b"b")
            start = time.monotonic()
            assert served.request("GET", "/metrics")[0] == 200
            assert time.monotonic() - start < 2
        assert threading.active_count() - before < 80
    finally:
        for connection in slow:
            connection.close()


@pytest.fixture(scope="module")
def impatient() -> Iterator[Served]:
    """A server whose status file does not fit the buffers of a connection."""
    made = Served(*(ok(f"n{i}" + "x" * 5000) for i in range(4000)), timeout_s=0.3)
    yield made
    made.server.close()
    made.server.close()  # once more is harmless


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes it before a timeout."""
    try:
        while connection.recv(1 << 20):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", b"GET /nothing HTTP/1.1\r\n\r\n"])
def test_silent_connection_is_closed(impatient: Served, sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Before, within and after a request."""
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=10) as silent:
        silent.sendall(sent)
        assert is_closed(silent)
    assert capfd.readouterr() == ("", "")


def test_connection_of_a_client_that_does_not_read_is_closed(
    impatient: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    """As many clients as there are threads, and responses beyond what the server buffers: the threads wait, too."""
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", impatient.port), timeout=10))
            client.sendall(b"GET /status.json HTTP/1.1\r\n\r\n" * 2)
        assert impatient.request("GET", "/?node=n39")[0] == 200
        wait_for(lambda: impatient.server.connections == 0)
    assert capfd.readouterr() == ("", "")


def test_client_that_has_sent_everything_gets_its_response(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(b"GET /status.json HTTP/1.0\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read().endswith(b"}\n")


def test_close_releases_the_port_and_ends_the_threads() -> None:
    before = threading.active_count()
    made = Served(ok())
    with socket.create_connection(("127.0.0.1", made.port), timeout=10) as client:
        made.server.close()
        assert is_closed(client)
    assert threading.active_count() == before
    again = serve("SCHED_METRICS_PORT", made.port, "127.0.0.1", make_wsgi_app(CollectorRegistry()))
    assert again.is_serving
    again.close()


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"G" * 70000, b"\r\n"]
)
def test_invalid_request_is_not_logged(served: Served, sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    client = socket.create_connection(("127.0.0.1", served.port), timeout=10)
    # The server may close the connection before all of it is sent.
    with client, contextlib.suppress(OSError):
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        client.recv(1000)
    assert served.request("GET", "/")[0] == 200
    assert capfd.readouterr() == ("", "")
