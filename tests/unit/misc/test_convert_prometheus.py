"""Conversion from a Prometheus server: errors, without a real server."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from misc.tracesources import prometheus as prometheus_source
from tests.support.conversion import Converter, prometheus_arguments


@pytest.fixture
def convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Converter:
    return Converter(tmp_path, capsys)


class StubServer(http.server.ThreadingHTTPServer):
    """A server on the loopback that sends the same status and body to each request, byte by byte after a pause."""

    daemon_threads = True

    def __init__(self, status: int, body: bytes, pause_s: float = 0.0) -> None:
        self.requests: list[tuple[str, str | None]] = []
        stub = self
        stop = threading.Event()
        self._stop = stop

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                stub.requests.append((self.path, self.headers.get("Authorization")))
                self.send_response(status)
                self.end_headers()
                for i in range(len(body)):
                    if pause_s and stop.wait(pause_s):
                        return
                    try:
                        self.wfile.write(body[i : i + 1] if pause_s else body)
                    except OSError:
                        return
                    if not pause_s:
                        return

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> StubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.shutdown()
        self._thread.join(10)
        self.server_close()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (503, b"upstream\nis down", "HTTP status 503"),
        (422, b'{"status":"error","errorType":"execution","error":"too many\\nsamples"}', "422, too many\\nsamples"),
        (200, b'{"status":"error","error":"no"}', "HTTP status 200, no"),
        (200, b"<html>\nlog in</html>", "not the response of a Prometheus server"),
        (200, b"", "not the response of a Prometheus server"),
        (200, b'{"status":"success"}', "no data in the response"),
        (200, b'{"status":"success","data":{"result":[{"metric":{},"value":[1,"2"]}]}}', "not the response"),
        (200, b'{"status":"success","data":{"result":[]}}', "no node_memory_MemTotal_bytes"),
        (
            200,
            b'{"status":"success","data":{"result":[{"metric":{},"values":[[1704070800,"x"]]}]}}',
            "'x' is not a sample value",
        ),
        (200, b'{"status":"success","data":{"result":[{"metric":{},"values":[[7,"1"]]}]}}', "outside the query"),
    ],
)
def test_invalid_response_is_one_line(convert: Converter, status: int, body: bytes, message: str) -> None:
    with StubServer(status, body) as server:
        line = convert.error(*prometheus_arguments(server.url))
    assert server.url in line
    assert message in line


def test_endless_response_times_out(convert: Converter) -> None:
    """A byte every 0.1 s: no single read times out."""
    start = time.monotonic()
    with StubServer(200, b" " * 1000, pause_s=0.1) as server:
        line = convert.error(*prometheus_arguments(server.url), "--timeout-s", "0.5")
    assert "no complete response within 0.5 s" in line
    assert time.monotonic() - start < 10


def test_server_that_does_not_respond_times_out(convert: Converter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        assert "no complete response within 0.5 s" in convert.error(*prometheus_arguments(url), "--timeout-s", "0.5")


def test_missing_server_is_named_without_its_password(convert: Converter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    line = convert.error(*prometheus_arguments(f"http://user:secret@127.0.0.1:{port}/prefix/"))
    assert f"http://127.0.0.1:{port}/prefix: Connection refused" in line


@pytest.mark.parametrize("url", ["prometheus:9090", "ftp://prometheus", "http://", "http://p:port", "http://p/?a=b"])
def test_invalid_url_is_an_error(convert: Converter, url: str) -> None:
    assert "--server" in convert.error(*prometheus_arguments(url))


def test_token_is_sent_and_an_invalid_token_file_is_named(
    convert: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    token = tmp_path / "token"
    token.write_text("s3cr3t\n")
    with StubServer(200, b"{}") as server:
        arguments = prometheus_arguments(server.url + "/prefix/")
        convert.error(*arguments, "--bearer-token-file", token)
        assert server.requests[0][0] == "/prefix/api/v1/query_range"
        assert server.requests[0][1] == "Bearer s3cr3t"
        assert "s3cr3t" not in convert.messages
        token.write_text("two words\n")
        assert f"{token}: not a token" in convert.error(*arguments, "--bearer-token-file", token)
        assert "nowhere: No such file" in convert.error(*arguments, "--bearer-token-file", tmp_path / "nowhere")


def test_label_values_are_escaped() -> None:
    assert prometheus_source.quoted('a"b\\c\nd') == r'"a\"b\\c\nd"'
    assert prometheus_source.same_host("w.1:9100") == r'instance=~"w\\.1(:[0-9]+)?"'
    assert prometheus_source.same_host("[::1]:9100") == r'instance=~"\\[::1\\](:[0-9]+)?"'
    assert prometheus_source.same_host("w1") == r'instance=~"w1(:[0-9]+)?"'
