"""The map of the code. The import contracts themselves are checked by import-linter (pyproject.toml)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.conftest import ROOT

MODEL = ROOT / "model"
MODULES = sorted(MODEL.rglob("*.py"))
PACKAGES = {
    *("aggregator", "ballooning", "cli", "commands", "common", "estimator", "evaluation", "parallel", "publishers"),
    *("publishers/placement", "publishers/status_page", "replay", "scan", "simulation", "store"),
}
#: The modules whose job is to print.
PRINTING = {
    *("cli/main.py", "cli/parser.py", "cli/tables.py", "commands/configuration.py", "commands/scroogevm.py"),
    *("evaluation/command.py", "replay/command.py", "scan/command.py", "simulation/command.py"),
}


def calls(path: Path, name: str) -> list[ast.Call]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [node for node in nodes if isinstance(node.func, ast.Name) and node.func.id == name]


def test_packages_are_those_of_the_map() -> None:
    found = {str(path.parent.relative_to(MODEL)) for path in MODULES} - {"."}
    assert found == PACKAGES


def test_each_package_is_installed() -> None:
    listed = re.findall(r'^    "scroogevm\.?([\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert {name.replace(".", "/") for name in listed} == {"", *PACKAGES}


def test_each_package_says_what_it_does() -> None:
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_only_command_lines_print() -> None:
    printing = {str(path.relative_to(MODEL)) for path in MODULES if calls(path, "print")}
    assert printing <= PRINTING


def test_imports_within_the_package_are_relative() -> None:
    """Else it could not be installed under another name."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module or "")
            assert not any(name.partition(".")[0] == "model" for name in names), path


def test_threads_are_started_in_one_place() -> None:
    for path in MODULES:
        text = path.read_text()
        assert "threading.Thread(" not in text or path == MODEL / "common" / "threads.py", path
        assert "signal.signal(" not in text or path == MODEL / "common" / "signals.py", path
