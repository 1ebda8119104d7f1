"""The notebook runs, and its committed output is current."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "scroogevm_analysis.ipynb"
LARGEST_BYTES = 2_000_000


def test_notebook_runs_and_shows_what_was_committed(tmp_path: Path) -> None:
    """In a copy, so that the results it computes do not land beside the code."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    for name in ("scroogevm.py", NOTEBOOK.name, "increasing-workload.json", "decreasing-workload.json"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("model", "misc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    notebook = nbformat.read(tmp_path / NOTEBOOK.name, as_version=4)
    committed, verdicts = shown(notebook), printed(notebook)
    assert sum(kinds.count("image/png") for kinds in committed) == 9
    assert verdicts.count("results-") == 2 + 4
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert shown(notebook) == committed
    assert printed(notebook) == verdicts


def test_notebook_is_small_and_states_the_definition() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < LARGEST_BYTES
    assert "A slice is violated when the 99th percentile of the node's samples in it exceeds what was published" in text


def shown(notebook: Any) -> list[list[str]]:
    """The kinds of output of each cell; a printed text may arrive in several pieces."""
    return [
        sorted({*streams(cell)}) + sorted(kind for output in cell.get("outputs", []) for kind in output.get("data", {}))
        for cell in notebook.cells
    ]


def streams(cell: Any) -> list[str]:
    return [output["name"] for output in cell.get("outputs", []) if output["output_type"] == "stream"]


def printed(notebook: Any) -> str:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")
