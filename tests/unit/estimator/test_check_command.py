"""``--check``: what is reported of store and nodes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from model.estimator.check_command import run_check
from model.estimator.options import CheckOptions
from model.samples import ScrapeSample
from model.store.sqlite import SqliteStore
from tests.unit.estimator.support import NODES


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path of the store that the settings name."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "deep" / "store.sqlite"
    monkeypatch.setenv("STORE_PATH", str(path))
    monkeypatch.setenv("STATE_ENDPOINT", str(tmp_path / "deep" / "status.json"))
    return path


def test_missing_store_is_reported_and_not_created(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_check(CheckOptions(NODES, 0, json=True)) == 1
    assert json.loads(capsys.readouterr().out) == [
        {"target": f"store {path}", "ok": False, "message": "does not exist yet; vmaggreg.py creates it"}
    ]
    assert run_check(CheckOptions(NODES, 0, json=False)) == 1
    assert "does not exist yet; vmaggreg.py creates it" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_nodes_and_store_are_reported_as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = SqliteStore(path, 86400)
    store.open()
    figures = {"cpu": 16.0, "mem": 32768.0, "cpu_usage": 1.0}
    store.write([store.encode(ScrapeSample(NODES[0], int(time.time() * 1000), figures, {"a": {"cpu": 2.0}}))])
    store.close()
    before = sorted(path.parent.iterdir())
    assert run_check(CheckOptions(NODES, 0, json=True)) == 1
    first, second, of_store = json.loads(capsys.readouterr().out)
    assert (first["target"], first["ok"]) == (NODES[0], True)
    assert first["message"].startswith("16 cores, 32 GB, 1 VMs, last sample ")
    assert second == {
        "target": NODES[1], "ok": False, "message": "no samples stored; does vmaggreg.py use the same URL?",
    }  # fmt: skip
    assert (of_store["target"], of_store["ok"]) == (f"store {path}", True)
    assert run_check(CheckOptions(NODES[:1], 0, json=True)) == 0
    assert sorted(path.parent.iterdir()) == before
