"""The status page: true, escaped, bounded, served to whoever is quick, and drawn by a real browser."""

from __future__ import annotations

import contextlib
import gzip
import html
import http.client
import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, make_wsgi_app

from model.common.errors import UsageError
from model.common.http_server import Server, serve
from model.publishers.prometheus import EstimatorCounts, EstimatorMetrics
from model.publishers.status_file import encode
from model.publishers.status_page.history import History
from model.publishers.status_page.page import KEPT, NODES_PER_PAGE, Query, StatusPage
from model.publishers.status_page.wsgi import application
from model.status import Figures, NodeStatus, ResourceStatus
from tests.support.servers import wait_for

SLICE_S, VALID_S = 1800.0, 1920.0
NOW_S = 1_800_000_000.0
LAST_S = NOW_S - 60
EVIL = "<script>alert(1)</script>\"'&{{7*7}}</svg>"


def ok(
    node: str = "http://w1:9100/metrics", end_s: float = LAST_S, free: float = 12.5, booked: float = 20.0
) -> NodeStatus:
    """A node of 32 cores and 64 GB."""
    cpu = Figures(32.0, booked, 32.0 - free, 0.0, free, free, end_s)
    mem = Figures(65536.0, 40960.0, 45056.0, 0.0, 20480.0, 20480.0, end_s)
    return NodeStatus(
        node,
        "scroogevm",
        end_s,
        ResourceStatus("ok", cpu, {"scroogevm": free, "borg": 3.25}),
        ResourceStatus("ok", mem, {"scroogevm": 20480.0, "borg": 1024.0}),
    )


def history(*published: list[NodeStatus]) -> History:
    kept = History()
    for statuses in published:
        kept.publish(statuses)
    return kept


def page(kept: History, query: str = "", now_s: float = NOW_S) -> str:
    return StatusPage(SLICE_S, VALID_S).render(*kept.shown, Query.parsed(query), now_s).decode()


def cells(text: str) -> list[list[str]]:
    """The rows of the table, without what is folded away and without pictures."""
    body = text[text.index("<tbody>") : text.rindex("</tbody>")]
    body = re.sub(r"<table>.*?</table>|<svg.*?</svg>", "", body, flags=re.S)
    rows = re.findall(r"<tr>(.*?)</tr>", body, flags=re.S)
    return [
        [
            " ".join(html.unescape(re.sub(r"<[^>]*>", " ", cell)).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", row, flags=re.S)
        ]
        for row in rows
    ]


# --- what is shown -----------------------------------------------------------------------------------


def test_row_holds_what_is_published() -> None:
    (row,) = cells(page(history([ok()])))
    assert row == [
        *("http://w1:9100/metrics", "ok", "12.5", "20.0", "32.0", "1.02", ""),
        *("20.0", "40.0", "64.0", "0.94", "", "60 s", "scroogevm"),
    ]


def test_stale_node_shows_nothing_free_and_what_was_last() -> None:
    text = page(history([ok(end_s=LAST_S - SLICE_S)], [ok(end_s=LAST_S - SLICE_S).aged(LAST_S)]))
    (row,) = cells(text)
    assert row[1:6] == ["stale", "0.0 last 12.5", "20.0", "32.0", "0.62"]
    assert "1 slices without figures" in text


def test_node_of_which_one_resource_is_stale_says_so_at_that_one() -> None:
    (row,) = cells(page(history([replace(ok(), mem=ok().mem.aged())])))
    assert row[1:3] == ["ok", "12.5"]
    assert row[7] == "0.0 last 20.0 stale"


@pytest.mark.parametrize("status", [NodeStatus("n", "borg"), NodeStatus("n", "borg").aged(LAST_S)])
def test_unknown_node_shows_nothing_but_that(status: NodeStatus) -> None:
    (row,) = cells(page(history([status])))
    assert row[:6] == ["n", "unknown", "0.0", "-", "-", "-"]
    assert row[-2] == ("-" if math.isnan(status.slice_end_s) else "60 s")


def test_daemon_that_no_longer_estimates_is_outdated() -> None:
    kept = history([ok()])
    assert cells(page(kept, now_s=LAST_S + VALID_S))[0][1] == "ok"
    assert cells(page(kept, now_s=LAST_S + VALID_S + 1))[0][1] == "outdated"


def test_before_the_first_publication_the_page_says_so() -> None:
    assert cells(page(History())) == [["nothing is published yet"]]
    assert cells(page(history([ok()]), "node=other")) == [["no node fits"]]


def test_totals_are_of_all_nodes_whatever_is_filtered() -> None:
    text = page(history([ok("a"), ok("b", free=2.5), ok("c").aged(LAST_S), NodeStatus("d", "borg")]), "node=a")
    assert "CPU: <b>15.0</b> cores free" in text
    # (3 * 20 + 15) / 96
    assert re.search(r"60\.0 booked of 96\.0, ratio\s+0\.78", text)
    assert [word in text for word in ("2 ok", "1 stale", "1 unknown", "outdated</a>")] == [True, True, True, False]


def test_other_strategies_are_folded_away() -> None:
    folded = re.search(r"<details><summary>scroogevm</summary>(.*?)</details>", page(history([ok()])), flags=re.S)
    assert folded
    assert re.findall(r"<t[hd].*?>(.*?)</t[hd]>", folded[1]) == [
        *("free", "CPU", "memory"),
        *("scroogevm", "12.5", "20.0"),
        *("borg", "3.2", "1.0"),
    ]
    alone = replace(ok(), cpu=replace(ok().cpu, others={"scroogevm": 1.0}), mem=replace(ok().mem, others={}))
    assert "<details>" not in page(history([alone]))


def test_picture_stacks_what_is_free_on_what_is_booked() -> None:
    """32 cores are the top, one pixel below the edge; 16 booked reach half of the 31 that are left, 8 more a quarter."""
    ends = [LAST_S - SLICE_S, LAST_S]
    text = page(history([ok(end_s=ends[0], free=8, booked=16)], [ok(end_s=ends[1], free=16, booked=16)]), "refresh=0")
    row = text[text.index("<tbody>") :]
    (free, *_), (booked, *_), (config, *_) = (
        re.findall(rf'<path class="{kind}" d="(.*?)"', row) for kind in ("free", "booked", "config")
    )
    assert (free, booked, config) == ("M188 32V9H190V1H192V32Z", "M188 32V17H192V32Z", "M188 1H192")
    assert "<title>CPU: free 8.0 to 16.0, booked 16.0 cores, ratio 0.75 to 1.00</title>" in row


def test_slice_without_figures_is_a_gap() -> None:
    kept = history([ok(end_s=LAST_S - 3 * SLICE_S)], [ok(end_s=LAST_S)])
    row = page(kept).partition("<tbody>")[2]
    assert re.findall(r'<path class="booked" d="(.*?)"', row)[0].count("Z") == 2
    assert "2 slices without figures" in row


@pytest.mark.parametrize("free", [0.0, 1e9, math.nan, math.inf])
def test_no_figure_breaks_the_page(free: float) -> None:
    status = ok(free=free)
    nothing = replace(status, cpu=ResourceStatus("ok", replace(Figures(*[0.0] * 7), slice_end_s=LAST_S), {}))
    assert len(cells(page(history([status, replace(nothing, node="zero")])))) == 2


# --- what is hostile ---------------------------------------------------------------------------------


def test_every_name_is_escaped() -> None:
    status = replace(ok(EVIL), strategy=EVIL)
    status = replace(status, cpu=replace(status.cpu, others={EVIL: 1.0, "b": 2.0}))
    text = page(history([status]), "node=%3C/script%3E%22'")
    assert "<script" not in text
    assert "\"'" not in text
    assert text.count("&lt;script&gt;alert(1)") == 3
    assert 'value="&lt;/script&gt;&#34;&#39;"' in text


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("", Query()),
        ("node=+W1+&state=stale&page=3&refresh=0", Query("w1", "stale", 3, refresh=False)),
        ("state=%3Cb%3E&page=-1", Query()),
        ("page=0x10&page=%D9%A3", Query()),
        (f"page={'9' * 5000}&node={'x' * 5000}", Query(node="x" * 200)),
        ("page=0&&&=&node", Query()),
        ("node=%ff%00", Query(node="\ufffd\x00")),
    ],
)
def test_query_is_read_or_left_out(text: str, query: Query) -> None:
    assert Query.parsed(text) == query
    assert page(history([ok()]), text)


def test_link_says_what_was_asked() -> None:
    query = Query('a&b"<', "stale", 3, refresh=False)
    assert Query.parsed(query.link().partition("?")[2]) == query
    assert query.link(node="", state="", page=1, refresh="") == "./?"


def test_pages_hold_a_bounded_number_of_nodes() -> None:
    kept = history([ok(f"n{i}") for i in range(2 * NODES_PER_PAGE + 1)])
    first, last, beyond = (cells(page(kept, f"page={k}")) for k in (1, 3, 99))
    assert (len(first), len(last), beyond) == (NODES_PER_PAGE, 1, last)
    assert [row[0] for row in cells(page(kept, "node=N39"))] == ["n39", *(f"n39{i}" for i in range(10))]


# --- what is kept ------------------------------------------------------------------------------------


def test_history_is_bounded_in_slices_nodes_and_bytes() -> None:
    kept, nodes = History(), [ok(f"n{i}") for i in range(100)]
    for k in range(KEPT + 10):
        kept.publish([replace(node, slice_end_s=k * SLICE_S) for node in nodes])
    _, courses = kept.shown
    assert {course.shape for course in courses.values()} == {(KEPT, 7)}
    assert courses["n7"][:, 0].tolist() == [k * SLICE_S for k in range(10, KEPT + 10)]
    # A thousand nodes cost less than 20 MB.
    assert sum(course.nbytes for course in courses.values()) * 10 < 6e6
    kept.publish(nodes[:1])
    assert list(kept.shown[1]) == ["n0"]


def test_slice_that_is_published_again_is_replaced() -> None:
    kept = history([ok(free=1)], [ok(free=2)])
    assert kept.shown[1][ok().node][:, 1].tolist() == [2.0]


def test_clock_that_was_put_back_takes_back_what_came_after() -> None:
    ends = [LAST_S, LAST_S + SLICE_S, LAST_S + 86400, LAST_S + SLICE_S]
    kept = history(*([ok(end_s=end_s)] for end_s in ends))
    assert kept.shown[1][ok().node][:, 0].tolist() == ends[:2]


def test_reader_sees_a_whole_history_while_it_grows() -> None:
    kept, stop = History(), threading.Event()
    nodes = [ok(f"n{i}") for i in range(20)]

    def publish() -> None:
        k = 0
        while not stop.is_set():
            k += 1
            kept.publish([replace(node, slice_end_s=k * SLICE_S) for node in nodes])

    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        for _ in range(50):
            _, courses = kept.shown
            ends = {tuple(course[:, 0]) for course in courses.values()}
            assert len(ends) <= 1
            page(kept)
    finally:
        stop.set()
        publisher.join()


# --- how it is served --------------------------------------------------------------------------------


class Served:
    """A server of some nodes on a free port."""

    def __init__(self, *statuses: NodeStatus, timeout_s: float = 10.0) -> None:
        registry = CollectorRegistry()
        metrics = EstimatorMetrics(registry, EstimatorCounts())
        kept = History()
        for publisher in (metrics, kept):
            publisher.publish(statuses)
        pages = application(kept, registry, SLICE_S, VALID_S, lambda: NOW_S)
        self.server = Server(pages, 0, "127.0.0.1", timeout_s=timeout_s)
        self.server.start()
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(ok(), ok(EVIL), ok("http://w2").aged(LAST_S))
    yield made
    made.server.close()


@pytest.mark.parametrize("path", ["/", "/?page=1", "/status.json", "/metrics"])
def test_head_is_answered_like_get_without_a_body(served: Served, path: str) -> None:
    status, headers, body = served.ask("GET", path)
    assert (status, len(body)) == (200, int(headers["content-length"]))
    again, without, nothing = served.ask("HEAD", path)
    assert (again, nothing) == (200, b"")
    volatile = {"date"}
    assert {k: v for k, v in without.items() if k not in volatile} == {
        k: v for k, v in headers.items() if k not in volatile
    }


@pytest.mark.parametrize(
    "path", ["/favicon.ico", "/metrics/", "/status.json/x", "/../etc/passwd", "/%2e%2e", "/index.html"]
)
def test_other_paths_are_not_found(served: Served, path: str) -> None:
    assert served.ask("GET", path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_not_allowed(served: Served, method: str) -> None:
    status, headers, _ = served.ask(method, "/")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics", "/nothing"])
def test_nothing_foreign_may_be_loaded(served: Served, path: str) -> None:
    _, headers, body = served.ask("GET", path)
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline';")
    assert headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in headers
    if path == "/":
        assert not re.search(rb"""(src|href|action|url)\s*[=(]\s*["']?\s*(\w+:)?//""", body)
        assert b"<script" not in body


def test_status_json_is_the_text_of_the_status_file(served: Served) -> None:
    _, headers, body = served.ask("GET", "/status.json")
    assert headers["content-type"] == "application/json"
    assert body == encode([ok(), ok(EVIL), ok("http://w2").aged(LAST_S)], VALID_S)
    assert list(json.loads(body)) == [ok().node, EVIL, "http://w2"]


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics"])
def test_who_can_unpack_gets_it_packed(served: Served, path: str) -> None:
    plain = served.ask("GET", path)[2]
    _, headers, packed = served.ask("GET", path, Accept_Encoding="br, gzip")
    assert headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed) == plain


def test_metrics_are_those_of_prometheus_own_application(served: Served) -> None:
    accepted = "application/openmetrics-text; version=1.0.0"
    _, headers, body = served.ask("GET", "/metrics", Accept=accepted)
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_metrics_pass_promtool(served: Served) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool on PATH: Debian's package prometheus has it")
    text = served.ask("GET", "/metrics")[2]
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_page_that_can_not_be_drawn_is_told_and_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    kept = History()
    kept.shown = (None, {})  # type: ignore[assignment]
    server = serve("SCHED_METRICS_PORT", 0, "127.0.0.1", application(kept, CollectorRegistry(), SLICE_S, VALID_S))
    try:
        for path, status in (("/", 500), ("/metrics", 200)):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            connection.request("GET", path)
            assert connection.getresponse().status == status
            connection.close()
    finally:
        server.close()
    assert "/ can't be shown" in caplog.text


@pytest.mark.parametrize(("port", "address"), [(1, "256.256.256.256"), (1, "not an address"), (8080, "192.0.2.1")])
def test_address_that_can_not_be_had_is_one_line(port: int, address: str) -> None:
    with pytest.raises(UsageError, match=rf"^SCHED_METRICS_PORT: cannot listen on port {port}: [^\n]*$"):
        serve("SCHED_METRICS_PORT", port, address, make_wsgi_app(CollectorRegistry()))


def test_ipv6_is_served() -> None:
    try:
        server = serve("SCHED_METRICS_PORT", 0, "::1", make_wsgi_app(CollectorRegistry()))
    except UsageError:
        pytest.skip("no IPv6 here")
    try:
        with urllib.request.urlopen(f"http://[::1]:{server.server_port}/", timeout=10) as response:
            assert response.status == 200
    finally:
        server.close()


# --- clients that mean no good -----------------------------------------------------------------------


def test_clients_that_never_finish_do_not_keep_others_out(served: Served) -> None:
    """A hundred and fifty begin a request, go on with it byte by byte, and never end it."""
    before = threading.active_count()
    slow = [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(150)]
    try:
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\nX-A: b")
        for _ in range(5):
            for connection in slow[-20:]:
                connection.sendall(b"b")
            start = time.monotonic()
            assert served.ask("GET", "/metrics")[0] == 200
            assert time.monotonic() - start < 2
        assert threading.active_count() - before < 80
    finally:
        for connection in slow:
            connection.close()


def test_silent_client_is_let_go(capfd: pytest.CaptureFixture[str]) -> None:
    made = Served(ok(), timeout_s=0.3)
    huge = Served(*(ok(f"n{i}" + "x" * 5000) for i in range(4000)), timeout_s=0.3)
    try:
        with socket.create_connection(("127.0.0.1", made.port), timeout=10) as silent:
            silent.sendall(b"GET / HTTP/1.1\r\n")
            assert silent.recv(100) == b""
        # One that does not read what it asked for: more than fits between here and there.
        with socket.create_connection(("127.0.0.1", huge.port), timeout=10) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.sendall(b"GET /status.json HTTP/1.0\r\n\r\n")
            time.sleep(1.0)
            assert huge.ask("GET", "/?node=n39")[0] == 200
    finally:
        made.server.close()
        huge.server.close()
        huge.server.close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"G" * 70000, b"\r\n"]
)
def test_nonsense_is_refused_without_a_word(served: Served, sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            client.recv(1000)
    assert served.ask("GET", "/")[0] == 200
    assert capfd.readouterr() == ("", "")


# --- a browser ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def browser(profile: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    if shutil.which("chromium") is None:
        pytest.skip("Debian's chromium is not installed")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    # It has errands of its own, at hosts that are nobody's here.
    alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    command = ["chromium", *flags.split(), alone, f"--user-data-dir={profile}", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def chromium(profile: Path, *arguments: str) -> str:
    """What it prints before it leaves."""
    with browser(profile, *arguments) as process:
        return process.communicate(timeout=120)[0]


def test_browser_shows_table_and_pictures(served: Served, tmp_path: Path) -> None:
    dom = chromium(tmp_path / "profile", "--dump-dom", served.url)
    assert [row[0] for row in cells(dom)] == [ok().node, EVIL, "http://w2"]
    assert [row[1] for row in cells(dom)] == ["ok", "ok", "stale"]
    assert dom.count("<svg") == 3 + 2 + 2 * 3
    assert "<script" not in dom


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_draws_in_the_colours_that_are_wished_for(served: Served, tmp_path: Path, scheme: str) -> None:
    """The corner has the colour of the ground, and the pictures' colours are on the page."""
    shot = tmp_path / "shot.png"
    number = {"dark": 0, "light": 1}[scheme]
    chromium(
        tmp_path / "profile",
        f"--screenshot={shot}",
        "--window-size=1400,600",
        f"--blink-settings=preferredColorScheme={number}",
        f"{served.url}?refresh=0",
    )
    colours = {tuple(colour) for colour in pixels(shot).reshape(-1, 3)[::7].tolist()}
    free, ground = {"light": ((127, 191, 154), (255, 255, 255)), "dark": ((63, 138, 96), (20, 24, 28))}[scheme]
    assert {free, ground} <= colours
    assert len(colours) > 20


def pixels(path: Path) -> Any:
    """(height, width, 3): what is in a PNG."""
    from matplotlib.image import imread

    return np.rint(imread(path)[:, :, :3] * 255).astype(int)


def test_browser_comes_back_by_itself_and_asks_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.publishers.status_page.page._REFRESH_S", 1)
    asked: list[str] = []
    inner = application(history([ok()]), CollectorRegistry(), SLICE_S, VALID_S, lambda: NOW_S)

    def counting(environ: Any, start_response: Any) -> Any:
        asked.append(environ["PATH_INFO"])
        return inner(environ, start_response)

    server = serve("SCHED_METRICS_PORT", 0, "127.0.0.1", counting)
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with browser(tmp_path / "profile", "--remote-debugging-port=0", f"{url}/"):
            wait_for(lambda: asked.count("/") >= 3)
    finally:
        server.close()
    assert set(asked) <= {"/", "/favicon.ico"}
