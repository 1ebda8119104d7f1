"""A proxy in front of a Prometheus server, which the tests tell how to fail or lie."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

SECRET = "s3cr3t-of-the-tests"


@dataclass(frozen=True)
class Asked:
    """A request: path, form and headers."""

    path: str
    form: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def promql(self) -> str:
        return self.form.get("query", "")


@dataclass(frozen=True)
class Reply:
    """A response.

    Attributes
    ----------
    cut : int or None
        The connection ends after this number of bytes of the body.
    pause_s : float
        Before the response; it ends early when the fault does.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    pause_s: float = 0.0


Forward = Callable[[Asked], Reply]
Fault = Callable[[Asked, Forward], Reply]


class Proxy(http.server.ThreadingHTTPServer):
    """Forwards the requests of the query API.

    Attributes
    ----------
    upstream : str
        URL of the server.
    fault : callable or None
        Responds in place of the server.
    failed : int
        Requests to which the fault has responded.
    asked : list of Asked
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str, context: ssl.SSLContext | None = None) -> None:
        self.upstream = upstream
        self.fault: Fault | None = None
        self.failed = 0
        self.asked: list[Asked] = []
        self.ended = threading.Event()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                form = dict(urllib.parse.parse_qsl(body))
                proxy.respond(self, Asked(self.path, form, dict(self.headers)))

            do_GET = do_POST = handle_any  # noqa: N815  # names of the library's

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "http" if context is None else "https"
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"{scheme}://{self.address}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.shutdown()
        self._thread.join(10)
        self.server_close()

    def handle_error(self, *_: Any) -> None:
        """The programs close connections; handshakes fail."""

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Let a fault respond during the block."""
        self.failed, self.fault = 0, fault
        try:
            yield
        finally:
            self.fault = None

    def respond(self, handler: http.server.BaseHTTPRequestHandler, asked: Asked) -> None:
        self.asked.append(asked)
        fault = self.fault
        reply = self.forward(asked) if fault is None else fault(asked, self.forward)
        if fault is not None:
            self.failed += 1
        end_s = time.monotonic() + reply.pause_s
        while time.monotonic() < end_s and self.fault is fault and not self.ended.wait(0.05):
            pass
        with contextlib.suppress(OSError):
            handler.send_response(reply.status)
            handler.send_header("Content-Length", str(len(reply.body)))
            for name, value in reply.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(reply.body[: reply.cut])
            if reply.cut is not None:
                handler.wfile.flush()
                handler.connection.shutdown(socket.SHUT_RDWR)

    def forward(self, asked: Asked) -> Reply:
        data = urllib.parse.urlencode(asked.form).encode() if asked.form else None
        try:
            with urllib.request.urlopen(self.upstream + asked.path, data, timeout=30) as response:
                return Reply(response.status, response.read(), {"Content-Type": "application/json"})
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.read(), {"Content-Type": "application/json"})
        except OSError:
            return Reply(502, b"<html>bad gateway</html>", {"Content-Type": "text/html"})


# --- faults -------------------------------------------------------------------------------------------


def with_reply(reply: Reply) -> Fault:
    """The same response to each request."""
    return lambda _asked, _forward: reply


def changed(change: Callable[[Reply], Reply]) -> Fault:
    """Another response in place of that of the server."""
    return lambda asked, forward: change(forward(asked))


def of_ranges(change: Callable[[list[Any], Asked], list[Any]]) -> Fault:
    """Other series in place of those of a range query."""

    def fault(asked: Asked, forward: Forward) -> Reply:
        reply = forward(asked)
        if not asked.path.endswith("/query_range") or reply.status != 200:
            return reply
        answer = json.loads(reply.body)
        answer["data"]["result"] = change(answer["data"]["result"], asked)
        return replace(reply, body=json.dumps(answer).encode())

    return fault


def slow(pause_s: float) -> Fault:
    return changed(lambda reply: replace(reply, pause_s=pause_s))


def refused(status: int, error: str, **headers: str) -> Fault:
    """An error in the format of the API."""
    body = json.dumps({"status": "error", "errorType": "execution", "error": error}).encode()
    return with_reply(Reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()}))


def html(status: int) -> Fault:
    return with_reply(Reply(status, b"<html><body>log in, please</body></html>", {"Content-Type": "text/html"}))


def redirected(url: str) -> Fault:
    return with_reply(Reply(302, b"<a>found</a>", {"Location": url}))


cut_off = changed(lambda reply: replace(reply, cut=len(reply.body) // 2))
truncated = changed(lambda reply: replace(reply, body=reply.body[: len(reply.body) // 2]))


def noted(**more: object) -> Fault:
    """With further keys in the envelope of each response."""
    return changed(lambda reply: replace(reply, body=json.dumps({**json.loads(reply.body), **more}).encode()))


def valued(value: str) -> Fault:
    """With this text in place of every value of a range."""
    return of_ranges(
        lambda result, _: [{**one, "values": [[time_s, value] for time_s, _ in one["values"]]} for one in result]
    )


def too_large(nodes: int) -> Fault:
    """Queries for more than a number of nodes are refused for their samples, as by Prometheus."""
    refuse = refused(422, "query processing would load too many samples into memory in query execution")

    def fault(asked: Asked, forward: Forward) -> Reply:
        asks = asked.promql.split('instance=~"')[1:]
        most = max((part.partition('"')[0].count("|") + 1 for part in asks), default=1)
        return refuse(asked, forward) if most > nodes else forward(asked)

    return fault


def without(dropped: Callable[[Mapping[str, str], int], bool]) -> Fault:
    """Without some series of each range, by labels and place, and without any sign of that."""
    return of_ranges(lambda result, _: [one for i, one in enumerate(result) if not dropped(one["metric"], i)])


def of_earlier(seconds: int, *, stamped: bool) -> Fault:
    """What the server would have answered earlier, as a cache does; perhaps with the times that are asked for."""

    def fault(asked: Asked, forward: Forward) -> Reply:
        if not asked.path.endswith("/query_range"):
            return forward(asked)
        times = {name: str(int(asked.form[name]) - seconds) for name in ("start", "end")}
        reply = forward(replace(asked, form={**asked.form, **times}))
        answer = json.loads(reply.body)
        if stamped:
            for one in answer["data"]["result"]:
                one["values"] = [[time_s + seconds, value] for time_s, value in one["values"]]
        return replace(reply, body=json.dumps(answer).encode())

    return fault


# --- TLS ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate of 127.0.0.1."""

    path: Path
    context: ssl.SSLContext


def certificate(folder: Path, name: str = "127.0.0.1") -> Certificate:
    """Make a certificate, by the program openssl."""
    folder.mkdir(exist_ok=True)
    path, key = folder / "certificate.pem", folder / "key.pem"
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", key, "-out", path, "-days", "2", "-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{name}"),
    ]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, key)
    return Certificate(path, context)
