"""The client of the query API: faults of a server, limits, what is sent, and how text from outside is quoted."""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from model.store.base import StoreUnavailable
from model.store.prometheus_groups import GroupReader
from model.store.prometheus_nodes import Node, host_part, usual_interval
from model.store.prometheus_queries import NODE_QUERIES, NODE_TIME, Matcher, any_of, parse_matchers, quoted, select
from model.store.prometheus_server import Access, Grid, PrometheusServer, QueryTooLarge

GRID = Grid(1_700_000_100, 4, 15)
Form = dict[str, str]


class Stub(http.server.ThreadingHTTPServer):
    """Answers each query with what a function returns: status, headers and body."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Form], tuple[int, dict[str, str], bytes]]) -> None:
        self.headers: list[dict[str, str]] = []
        self.forms: list[Form] = []
        self.at_once = self.most_at_once = 0
        lock, stub = threading.Lock(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                form = dict(urllib.parse.parse_qsl(body))
                with lock:
                    stub.headers.append(dict(self.headers))
                    stub.forms.append(form)
                    stub.at_once += 1
                    stub.most_at_once = max(stub.most_at_once, stub.at_once)
                status, headers, answered = answer(form)
                with lock:
                    stub.at_once -= 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answered)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Stub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join(10)
        self.server_close()


def body_of(*series: tuple[dict[str, str], list[tuple[float, str]]], **more: object) -> bytes:
    result = [{"metric": labels, "values": values} for labels, values in series]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}, **more}).encode()


def series_of(*values: str) -> list[tuple[float, str]]:
    return [(GRID.first_s + i * GRID.step_s, value) for i, value in enumerate(values)]


def ask(status: int, body: bytes, headers: dict[str, str] | None = None, **more: Any) -> Any:
    with Stub(lambda _: (status, headers or {}, body)) as stub:
        return PrometheusServer(Access(stub.url, timeout_s=5.0, **more)).query_range("up", GRID)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>log in</html>", "not the response of a Prometheus server"),
        (200, body_of(({}, series_of("1", "2")))[:-30], "not the response of a Prometheus server"),
        (200, b'{"status":"success"}', "no data in the response"),
        (200, b'{"status":"success","data":{"result":[{"metric":{},"values":{}}]}}', "not the response"),
        (200, body_of(({}, series_of("1", "many"))), "'many' is not a sample value"),
        (200, body_of(({}, [(1.0, "1")])), "outside the query"),
        (200, body_of(({}, series_of("1")), warnings=["store 7: timeout"]), "may be partial: store 7: timeout"),
        (200, body_of(({}, series_of("1")), isPartial=True), "may be partial"),
        (302, b"", "redirects"),
        (401, b"no", "are the credentials right?"),
        (403, b'{"status":"error","error":"denied"}', "denied; are the credentials right?"),
        (400, b'{"status":"error","error":"parse error"}', "HTTP status 400, parse error"),
        (500, b"", "HTTP status 500"),
    ],
)
def test_fault_of_the_server_is_an_outage_in_one_line(status: int, body: bytes, message: str) -> None:
    with pytest.raises(StoreUnavailable, match=message.replace("?", r"\?")) as raised:
        ask(status, body)
    assert not isinstance(raised.value, QueryTooLarge)
    assert "\n" not in str(raised.value)


def test_notes_of_newer_servers_are_no_faults() -> None:
    body = body_of(({}, series_of("1")), warnings=["PromQL info: metric might not be a counter"], infos=["x"])
    assert len(ask(200, body)) == 1


@pytest.mark.parametrize(
    ("status", "error"), [(422, "would load too many samples"), (400, "exceeded maximum resolution"), (413, "")]
)
def test_query_that_is_too_large_is_told_apart(status: int, error: str) -> None:
    with pytest.raises(QueryTooLarge):
        ask(status, json.dumps({"status": "error", "error": error}).encode())


@pytest.mark.parametrize("status", [429, 503])
def test_wait_that_the_server_asks_for_is_passed_on(status: int) -> None:
    with pytest.raises(StoreUnavailable) as raised:
        ask(status, b"", {"Retry-After": "17"})
    assert raised.value.retry_after_s == 17.0


def test_values_are_put_on_the_grid() -> None:
    late = [(GRID.first_s + 45, "4"), (GRID.first_s + 15, "+Inf")]
    found = ask(200, body_of(({"a": 'x","values":[[1,"2"]]'}, series_of("1", "NaN", "1e3", "-4.5")), ({}, late)))
    assert found[0].labels == {"a": 'x","values":[[1,"2"]]'}
    np.testing.assert_array_equal(found[0].values, [1.0, np.nan, 1000.0, -4.5])
    np.testing.assert_array_equal(found[1].values, [np.nan, np.nan, np.nan, 4.0])


def test_credentials_and_headers_are_sent_and_not_shown() -> None:
    with Stub(lambda _: (200, {}, body_of())) as stub:
        tenant = {"X-Scope-OrgID": "cloud"}
        PrometheusServer(Access(stub.url, token="s3cret", headers=tenant)).query_range("up", GRID)
        PrometheusServer(Access(stub.url, user="ü", password="s3cret")).query_range("up", GRID)
        url = stub.url.replace("http://", "http://me:s3cret@")
        server = PrometheusServer(Access(url))
        server.query_range("up", GRID)
    sent = [headers["Authorization"] for headers in stub.headers]
    basic = [base64.b64decode(text.removeprefix("Basic ")).decode() for text in sent[1:]]
    assert (sent[0], basic) == ("Bearer s3cret", ["ü:s3cret", "me:s3cret"])
    assert stub.headers[0]["X-Scope-OrgID"] == "cloud"
    assert stub.headers[0]["Accept-Encoding"] == "identity"
    assert "s3cret" not in server.name + repr(Access(url, "s3cret"))


def test_compressed_answer_can_be_asked_for() -> None:
    def compressed(_: Form) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Encoding": "gzip"}, gzip.compress(body_of(({"a": "b"}, series_of("1", "2", "3", "4"))))

    with Stub(compressed) as stub:
        server = PrometheusServer(Access(stub.url, headers={"Accept-Encoding": "gzip"}))
        (found,) = server.query_range("up", GRID)
    assert stub.headers[0]["Accept-Encoding"] == "gzip"
    assert found.values.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_queries_at_once_are_limited() -> None:
    def slow(_: Form) -> tuple[int, dict[str, str], bytes]:
        time.sleep(0.05)
        return 200, {}, body_of()

    with Stub(slow) as stub:
        server = PrometheusServer(Access(stub.url, queries_at_once=2))
        threads = [threading.Thread(target=server.query_range, args=("up", GRID)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(stub.forms) == 8
    assert stub.most_at_once <= 2


def group_reader(stub: Stub, max_samples: int = 10**9) -> GroupReader:
    return GroupReader(PrometheusServer(Access(stub.url)), "instance", (), max_samples)


def limited(most: int) -> Callable[[Form], tuple[int, dict[str, str], bytes]]:
    """A server that refuses queries of more than some nodes x points."""

    def answer(form: Form) -> tuple[int, dict[str, str], bytes]:
        names = [name for name in ("a", "b", "c", "d", "e") if f"{name}.x" in form["query"].replace("\\", "")]
        start, end, step = (int(form[key]) for key in ("start", "end", "step"))
        points = range(start, end + 1, step)
        if len(names) * len(points) > most:
            return 422, {}, b'{"status":"error","error":"query processing would load too many samples"}'
        return 200, {}, body_of(*(({"instance": f"{name}.x"}, [(t, str(t)) for t in points]) for name in names))

    return answer


@pytest.mark.parametrize("most", [20, 9, 4, 3, 1])
def test_query_that_is_too_large_is_halved_by_nodes_then_by_time(most: int) -> None:
    nodes = [Node(name, f"{name}.x", f"{name}.x") for name in "abcde"]
    with Stub(limited(most)) as stub:
        found = group_reader(stub).figures(nodes, GRID, {NODE_TIME: NODE_QUERIES[NODE_TIME]})[NODE_TIME]
    assert [series.labels["instance"] for series in found] == [node.node for node in nodes]
    for series in found:
        np.testing.assert_array_equal(series.values, GRID.times_s)


def test_query_of_one_point_that_is_too_large_is_an_outage() -> None:
    with Stub(limited(0)) as stub, pytest.raises(StoreUnavailable, match="too many samples"):
        group_reader(stub).figures([Node("a", "a.x", "a.x")], GRID, {NODE_TIME: NODE_QUERIES[NODE_TIME]})


def test_queries_ask_for_no_more_samples_than_set() -> None:
    nodes = [Node(name, f"{name}.x", f"{name}.x") for name in "abcde"]
    with Stub(limited(100)) as stub:
        group_reader(stub, 2 * 50 * GRID.points).figures(nodes, GRID, {NODE_TIME: NODE_QUERIES[NODE_TIME]})
    assert len(stub.forms) == 3


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "x}) or vector(1", "ä", "%", "{{"])
def test_text_from_outside_stays_within_its_quotes(text: str) -> None:
    quote = quoted(text)
    assert quote[0] == quote[-1] == '"'
    assert json.loads(quote) == text
    assert select("up", Matcher("a", "=", text)) == f"up{{a={quote}}}"
    assert parse_matchers(f"a={quote}") == (Matcher("a", "=", text),)


def test_values_of_a_regular_expression_are_escaped() -> None:
    assert str(any_of("instance", ["a.b:1", "c|d"])) == r'instance=~"a\\.b:1|c\\|d"'
    assert str(any_of("instance", ["a.b:1"])) == 'instance="a.b:1"'


@pytest.mark.parametrize("text", ["a", "a=b", 'a="b', 'a="b"c="d"', 'a=="b"', '{a="b"}', 'a="b\\q"', '="b"'])
def test_text_that_is_no_matcher_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="matcher"):
        parse_matchers(text)


def test_host_and_interval_are_recognised() -> None:
    assert [host_part(text) for text in ("w1:9100", "w1", "[::1]:9100", "10.0.0.1:80")] == [
        "w1",
        "w1",
        "[::1]",
        "10.0.0.1",
    ]
    assert [usual_interval(of) for of in (15.4, 13.6, 58.0, 31.0, 44.0, 0.4)] == [15, 15, 60, 30, 44, 1]
