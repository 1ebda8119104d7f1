"""The status page in a real browser."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from model.common.http_server import serve
from model.publishers.status_page.wsgi import application
from tests.support.servers import wait_for
from tests.support.status_pages import EVIL, LAST_S, NOW_S, SLICE_S, VALID_S, Served, cells, history, ok


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(ok(), ok(EVIL), ok("http://w2").aged(LAST_S))
    yield made
    made.server.close()


FRAME = b"""<iframe id="f" src="/?refresh=0" style="width: 400px; height: 800px; border: 0"></iframe><p id="p"></p>
<script>f.onload = () => {
  const root = f.contentDocument.documentElement, table = f.contentDocument.querySelector("main");
  p.textContent = [root.scrollWidth - root.clientWidth, table.scrollWidth > table.clientWidth].join()
}</script>"""


@contextlib.contextmanager
def browser(profile: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    if shutil.which("chromium") is None:
        pytest.skip("Debian's chromium is not installed")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    # It connects to hosts of its own.
    alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    command = ["chromium", *flags.split(), alone, f"--user-data-dir={profile}", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def chromium(profile: Path, *arguments: str) -> str:
    """What it prints."""
    with browser(profile, *arguments) as process:
        return process.communicate(timeout=120)[0]


def test_browser_shows_table_and_charts(served: Served, tmp_path: Path) -> None:
    dom = chromium(tmp_path / "profile", "--dump-dom", served.url)
    assert [row[0] for row in cells(dom)] == [ok().node, EVIL, "http://w2"]
    assert [row[1] for row in cells(dom)] == ["ok", "ok", "stale"]
    assert dom.count("<svg") == 3 + 2 + 2 * 3
    assert "<script" not in dom


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_uses_the_preferred_colour_scheme(served: Served, tmp_path: Path, scheme: str) -> None:
    """The colours of background and charts are on the page."""
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
    """The pixels of a PNG, (height, width, 3)."""
    from matplotlib.image import imread

    return np.rint(imread(path)[:, :, :3] * 255).astype(int)


def test_browser_reloads_the_page_and_requests_nothing_else(
    tmp_path: Path,
) -> None:
    requests: list[str] = []
    inner = application(history([ok()]), CollectorRegistry(), SLICE_S, VALID_S, lambda: NOW_S, refresh_s=1)

    def counting(environ: Any, start_response: Any) -> Any:
        requests.append(environ["PATH_INFO"])
        return inner(environ, start_response)

    server = serve("SCHED_METRICS_PORT", 0, "127.0.0.1", counting)
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with browser(tmp_path / "profile", "--remote-debugging-port=0", f"{url}/"):
            wait_for(lambda: requests.count("/") >= 3)
    finally:
        server.close()
    assert set(requests) <= {"/", "/favicon.ico"}


def test_page_fits_a_width_of_400_pixels(tmp_path: Path) -> None:
    """The page does not overflow; the table scrolls in its container."""
    nodes = [ok("http://" + "long-name-" * 20), ok(EVIL), ok("n" * 200).aged(LAST_S)]
    pages = application(history(nodes), CollectorRegistry(), SLICE_S, VALID_S, lambda: NOW_S)

    def framed(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/frame":
            start_response("200 OK", [("Content-Type", "text/html")])
            return [FRAME]

        def start(status: str, headers: list[tuple[str, str]]) -> None:
            # The page itself forbids frames.
            kept = [(name, value) for name, value in headers if name != "Content-Security-Policy"]
            start_response(status, kept)

        return pages(environ, start)

    server = serve("SCHED_METRICS_PORT", 0, "127.0.0.1", framed)
    try:
        dom = chromium(tmp_path / "profile", "--dump-dom", f"http://127.0.0.1:{server.server_port}/frame")
    finally:
        server.close()
    assert re.findall(r'<p id="p">(.*?)</p>', dom) == ["0,true"]
