"""The map of the code, held to."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

#: numpy to reckon with and msgspec to read traces with; nothing that opens a socket or a database.
THINKING_MAY_IMPORT = {"numpy", "msgspec", "pandas", "model"}
MODULES = sorted((ROOT / "model").glob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_what_thinks_touches_no_wire(path: Path) -> None:
    for name in imported(path):
        top = name.partition(".")[0]
        assert top in THINKING_MAY_IMPORT or top in sys.stdlib_module_names, name
        assert top not in {"socket", "http", "urllib", "sqlite3", "subprocess", "ssl"}, name
        assert not name.startswith("model.adapters"), f"{path.name} thinks, and must not know of {name}"


def test_no_module_needs_another_that_needs_it() -> None:
    """Each module can be imported first."""
    for path in [*MODULES, *(ROOT / "model" / "adapters").glob("*.py")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_live_code_has_no_prints() -> None:
    for path in [*MODULES, *(ROOT / "model" / "adapters").glob("*.py")]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        prints = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
        assert not prints or path.name == "commandline.py"
