"""misc/vcpu-delay.sh: what it prints of virsh's statistics, and that a file with old ones never stays."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from model.aggregator.contention_metrics import ContentionReader
from model.aggregator.limits import PageLimits
from tests.conftest import ROOT

#: As virsh 9.0 prints it, with figures that later versions add.
STATS = r"""Domain: 'vm-1'
  vcpu.current=2
  vcpu.maximum=4
  vcpu.0.state=1
  vcpu.0.time=3010000000
  vcpu.0.wait=77
  vcpu.0.delay=3199917451
  vcpu.0.halted=no
  vcpu.0.exits.sum=123
  vcpu.10.state=1
  vcpu.10.time=1234567890123456
  vcpu.10.delay=5

Domain: 'it's "a\b" é'
  vcpu.0.time=0
  vcpu.0.delay=1

"""

#: Prints its arguments to a file, then the statistics, and ends with a code.
VIRSH = """#!/bin/sh
printf '%s\\n' "$*" LC_ALL="$LC_ALL" >"$FAKE/calls"
cat "$FAKE/stats"
exit "$(cat "$FAKE/code")"
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """Folder of a virsh that prints statistics."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "virsh").write_text(VIRSH)
    (folder / "virsh").chmod(0o755)
    (folder / "stats").write_text(STATS)
    (folder / "code").write_text("0")
    return folder


@pytest.fixture
def run(fake: Path, tmp_path: Path) -> Run:
    def run_script(*arguments: str, shell: str = "sh") -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{fake}:{os.environ['PATH']}", "FAKE": str(fake), "LANG": "de_DE.UTF-8"}
        command = [*shell.split(), str(ROOT / "misc" / "vcpu-delay.sh"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60, check=False
        )

    return run_script


def values(text: str) -> dict[tuple[str, str, str], float]:
    """Seconds by metric, domain and vCPU."""
    return {
        (sample.name, sample.labels["domain"], sample.labels["vcpu"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


DELAY, TIME = "libvirt_domain_vcpu_delay_seconds_total", "libvirt_domain_vcpu_time_seconds_total"


@pytest.mark.parametrize("shell", ["sh", "bash --posix", "busybox sh"])
def test_statistics_are_printed_in_the_text_format(run: Run, fake: Path, shell: str) -> None:
    if shutil.which(shell.partition(" ")[0]) is None:
        pytest.skip(f"{shell} is not installed")
    done = run(shell=shell)
    assert (done.returncode, done.stderr) == (0, "")
    odd = 'it\'s "a\\b" é'
    assert values(done.stdout) == {
        (DELAY, "vm-1", "0"): 3.199917451,
        (DELAY, "vm-1", "10"): 0.000000005,
        (TIME, "vm-1", "0"): 3.01,
        (TIME, "vm-1", "10"): 1234567.890123456,
        (DELAY, odd, "0"): 0.000000001,
        (TIME, odd, "0"): 0.0,
    }
    # A translated "Domain:" could not be read.
    assert (fake / "calls").read_text() == "domstats --vcpu --list-running\nLC_ALL=C\n"


def test_aggregator_reads_what_is_printed(run: Run) -> None:
    contention = ContentionReader(PageLimits()).read_node_page(run().stdout.encode(), 1.0)
    assert contention.vcpus["vm-1"].wait == {"0": 3.199917451, "10": 5e-09}
    assert contention.vcpus["vm-1"].run == {"0": 3.01, "10": 1234567.890123456}
    assert set(contention.vcpus) == {"vm-1", 'it\'s "a\\b" é'}


def test_uri_is_that_of_the_option(run: Run, fake: Path) -> None:
    uri = "qemu+unix:///system?socket=/run/a b"
    for arguments in (["--connect", uri], [f"--connect={uri}"]):
        assert run(*arguments).returncode == 0
        assert (fake / "calls").read_text().startswith(f"--connect {uri} domstats --vcpu --list-running\n")


@pytest.mark.parametrize("name", ["vms.prom", "folder/vms.prom"])
def test_file_is_replaced_and_readable_for_all(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    file = tmp_path / name
    file.write_text("old")
    before = file.stat().st_ino
    done = run("--output", name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert file.read_text() == run().stdout
    assert file.stat().st_ino != before
    assert file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".")] == []


def test_no_running_vm_gives_a_file_without_series(run: Run, fake: Path, tmp_path: Path) -> None:
    (fake / "stats").write_text("\n")
    assert run(f"--output={tmp_path}/vms.prom").returncode == 0
    assert values((tmp_path / "vms.prom").read_text()) == {}


@pytest.mark.parametrize(
    ("stats", "code", "message"),
    [
        pytest.param(STATS, "1", "virsh failed", id="virsh fails"),
        pytest.param(STATS.replace(".delay=", ".other="), "0", "libvirt is older than 7.2", id="no delay"),
    ],
)
def test_old_file_is_removed_when_there_are_no_statistics(
    run: Run, fake: Path, tmp_path: Path, stats: str, code: str, message: str
) -> None:
    (tmp_path / "vms.prom").write_text("old")
    (fake / "stats").write_text(stats)
    (fake / "code").write_text(code)
    done = run("--output", "vms.prom")
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fake"]


def test_old_file_is_removed_without_virsh(run: Run, fake: Path, tmp_path: Path) -> None:
    (tmp_path / "vms.prom").write_text("old")
    (fake / "virsh").write_text("#!/nonexistent\n")
    assert run("--output", "vms.prom").returncode == 1
    assert not (tmp_path / "vms.prom").exists()


def test_old_file_is_removed_when_the_script_is_ended(run: Run, fake: Path, tmp_path: Path) -> None:
    """As the timeout of a service does while virsh hangs."""
    (tmp_path / "vms.prom").write_text("old")
    (fake / "virsh").write_text("#!/bin/sh\nkill -TERM $PPID\nsleep 1\n")
    done = run("--output", "vms.prom")
    assert done.returncode == 1
    assert not (tmp_path / "vms.prom").exists()


def test_folder_that_does_not_exist_is_one_line(run: Run) -> None:
    done = run("--output", "nowhere/vms.prom")
    assert (done.returncode, done.stderr) == (1, "vcpu-delay.sh: nowhere/vms.prom: cannot be written\n")


@pytest.mark.parametrize(
    "arguments",
    [["--what"], ["x"], ["--output"], ["--output", "vms.txt"], ["--connect"], ["--connect", ""], ["--connect="]],
)
def test_bad_arguments_are_refused(run: Run, fake: Path, arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vcpu-delay.sh: ")
    assert not (fake / "calls").exists()


def test_help_is_printed(run: Run, fake: Path) -> None:
    for flag in ("-h", "--help"):
        done = run(flag)
        assert (done.returncode, done.stderr) == (0, "")
        assert {"--connect", "--output", "--help"} <= set(done.stdout.replace("\n", " ").split())
    assert not (fake / "calls").exists()
