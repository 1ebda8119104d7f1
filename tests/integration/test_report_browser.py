"""The report in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from model.oversubscriptioncomputation import STRATEGIES
from model.replay.report import render_report
from tests.support.replays import RISKS, tiny_results

#: Appended to the page: what the browser measures goes into the title.
PROBE = """<script>
const shown = [...document.querySelectorAll("figure svg")].filter(svg => svg.getBoundingClientRect().width >= 200);
document.title = [shown.length, document.documentElement.scrollWidth <= window.innerWidth,
  getComputedStyle(document.body).backgroundColor].join(" ");
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (500, True)])
def test_report_is_drawn_at_any_width_and_in_both_colour_schemes(width: int, dark: bool, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render_report(tiny_results(), RISKS) + PROBE)
    done = subprocess.run(
        [
            "chromium",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-sync"),
            f"--window-size={width},900",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    title = re.search(r"<title>(\d+) (\w+) (rgb\(.*?\))</title>", done.stdout)
    assert title is not None, done.stdout[:500]
    pictures, fits, background = title.groups()
    assert int(pictures) == 10 * len(STRATEGIES)
    assert fits == "true"
    assert background == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
    assert "Too few slices to tell" in done.stdout
