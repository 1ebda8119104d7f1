"""report.html: whole, escaped, and readable without any other file or host."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from model.nodemodel import ModelSettings
from model.oversubscriptioncomputation import STRATEGIES
from model.replay.dump import DumpError
from model.replay.replay import Replay
from model.replay.report import render_report
from model.replay.results import Results, load_results, replay_results
from model.replay.trace import read_trace
from tests.conftest import DATA, ROOT, Run

TINY = DATA / "goldens" / "traces" / "tiny.json"


def results(name: str = "tiny", node: str = "http://node.test:9100/metrics") -> Results:
    trace = read_trace(TINY)
    return replay_results(name, node, Replay(trace, ModelSettings(3, tuple(STRATEGIES))).run())


class Page(HTMLParser):
    """The attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in {"src", "href", "action", "data"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_holds_its_pictures_and_asks_no_other_host() -> None:
    page = Page(render_report(results(), 0.05))
    assert len(page.links) == 6
    for link in page.links:
        kind, _, data = link.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert not {"script", "link", "iframe", "object"} & set(page.tags)


def test_report_shows_the_figures_of_the_summary() -> None:
    outcome = results()
    text = Page(render_report(outcome, 0.05)).text
    for row in outcome.scores:
        assert row.strategy in text
        assert f"{row.published_misprediction:.3f}" in text
        assert f"{row.violation_frequency:.1%}" in text


def test_report_escapes_every_name() -> None:
    evil = "<img src=x onerror=alert(1)>\"'&{{7*7}}"
    text = render_report(results(evil, evil), 0.05)
    assert "<img src=x" not in text
    page = Page(text)
    assert all(link.startswith("data:image/png") for link in page.links)
    assert page.text.count(evil) >= 2


def test_report_of_a_trace_in_which_nothing_can_be_scored() -> None:
    trace = read_trace(TINY)
    recorder = Replay(trace, ModelSettings(3, ("doa",)))
    recorder.trace.epoch[:] = recorder.trace.epoch[:1]
    assert "No slice could be scored" in render_report(replay_results("one", "n", recorder.run()), 0.05)


def test_results_of_different_traces_are_not_mixed(scroogevm: Run, tmp_path: Path) -> None:
    scroogevm("-l", TINY, "-o", tmp_path / "a", "-s", "doa,borg")
    scroogevm("-l", TINY, "-o", tmp_path / "b", "-s", "nsigma", "--url", '["other"]')
    shutil.copy(tmp_path / "b" / "dump-nsigma.json", tmp_path / "a")
    with pytest.raises(DumpError, match=r"dump-nsigma\.json: of another trace"):
        load_results(tmp_path / "a")


def test_results_of_different_settings_are_not_mixed(scroogevm: Run, tmp_path: Path) -> None:
    scroogevm("-l", TINY, "-o", tmp_path / "a", "-s", "doa,borg")
    scroogevm("-l", TINY, "-o", tmp_path / "a", "-s", "greedy", "-c", "50")
    with pytest.raises(DumpError, match=r"dump-greedy\.json: of another trace, or with other settings"):
        load_results(tmp_path / "a")


def test_two_dumps_of_one_strategy_are_not_one(scroogevm: Run, tmp_path: Path) -> None:
    scroogevm("-l", TINY, "-o", tmp_path / "a", "-s", "doa")
    shutil.copy(tmp_path / "a" / "dump-doa.json", tmp_path / "a" / "dump-doa2.json")
    with pytest.raises(DumpError, match="another dump of doa"):
        load_results(tmp_path / "a")


@pytest.mark.parametrize("damage", [("model", "free_cpu"), ("node", "cpu_config"), ("node", "mem_percentile")])
def test_dump_with_a_short_column_is_told(scroogevm: Run, tmp_path: Path, damage: tuple[str, str]) -> None:
    scroogevm("-l", TINY, "-o", tmp_path / "a", "-s", "doa")
    path = tmp_path / "a" / "dump-doa.json"
    dump = json.loads(path.read_bytes())
    dump[damage[0]][damage[1]].pop()
    path.write_text(json.dumps(dump))
    with pytest.raises(DumpError, match=damage[1]):
        load_results(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"epoch": [1]}'])
def test_what_is_no_dump_is_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(DumpError, match=re.escape(str(tmp_path))):
        load_results(tmp_path)
    (tmp_path / "dump-x.json").write_text(text)
    with pytest.raises(DumpError, match=r"dump-x\.json"):
        load_results(tmp_path)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's chromium is not installed")
def test_report_is_drawn_by_a_browser_without_errors(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(render_report(results(), 0.05))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-sync",
    ]
    done = subprocess.run(
        [
            "chromium",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            *flags,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.count("<img") == 6
    assert "Best choice" in done.stdout or "No strategy keeps" in done.stdout


def test_notebook_runs_and_shows_what_was_committed(tmp_path: Path) -> None:
    """In a copy, so that the results it computes do not land beside the code."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    for name in ("scroogevm.py", "scroogevm_analysis.ipynb", "increasing-workload.json", "decreasing-workload.json"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("model", "misc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    notebook = nbformat.read(tmp_path / "scroogevm_analysis.ipynb", as_version=4)
    committed = shown(notebook)
    assert sum(kinds.count("image/png") for kinds in committed) == 9
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert shown(notebook) == committed


def shown(notebook: Any) -> list[list[str]]:
    """The kinds of output of each cell."""
    return [
        sorted(kind for output in cell.get("outputs", []) for kind in output.get("data", {output["output_type"]: ""}))
        for cell in notebook.cells
    ]
