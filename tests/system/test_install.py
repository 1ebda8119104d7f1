"""The package as ``pip install .`` leaves it: three commands, no module called ``model``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DATA, ROOT, bare_environment

TRACE = DATA / "goldens" / "traces" / "tiny.json"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the checkout was installed, without its dependencies, which are here."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    # A copy of what is tracked: a build leaves files beside its source.
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    names = [name for name in files.decode().split("\0") if name and (ROOT / name).is_file()]
    subprocess.run(["cp", "--parents", *names, str(source)], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, f"--target={folder / 'site'}", str(source)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "site"


def run(installed: Path, command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**bare_environment(), "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, str(installed / "bin" / command), *arguments],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", ["scroogevm", "vmaggreg", "vmballooning"])
def test_each_command_is_installed_and_validates_settings(command: str, installed: Path, tmp_path: Path) -> None:
    assert run(installed, command, "--version", cwd=tmp_path).stdout.startswith("ScroogeVM ")
    assert run(installed, command, "-h", cwd=tmp_path).returncode == 0
    done = run(installed, command, "--check-config", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "names no" in done.stderr
    assert not list(tmp_path.iterdir())


def test_installed_replay_writes_report_and_dumps(installed: Path, tmp_path: Path) -> None:
    done = run(installed, "scroogevm", f"--load={TRACE}", "--output=out", "--report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "</html>" in (tmp_path / "out" / "report.html").read_text()


def test_every_package_of_the_checkout_is_installed(installed: Path) -> None:
    def modules(root: Path) -> set[str]:
        kinds = {".py", ".jinja", ".sh"}
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.suffix in kinds}

    assert modules(installed / "scroogevm") == modules(ROOT / "model")
    assert not (installed / "model").exists()


def test_dependencies_are_those_of_the_requirements() -> None:
    """What pip installs with the commands has the same ranges as in a checkout."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()}
    optional = [one for extra in project["optional-dependencies"].values() for one in extra]
    assert {*project["dependencies"], *optional} <= wanted
