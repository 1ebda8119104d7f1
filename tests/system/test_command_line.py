"""scroogevm.py as its users meet it: what it prints, writes and refuses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.oversubscriptioncomputation import STRATEGIES
from model.replay.scoring import SUMMARY_COLUMNS
from model.stability import STABILITY_DETECTORS
from tests.conftest import DATA, ROOT, Run, TraceObject, bare_environment, strict_json

TINY = DATA / "goldens" / "traces" / "tiny.json"
WriteTrace = Callable[[Any], Path]

MODEL_KEYS = {f"{resource}_tier{i}" for resource in ("cpu", "mem") for i in range(3)} | {
    f"{kind}_{resource}" for kind in ("free", "published", "unguarded", "violated") for resource in ("cpu", "mem")
}
SUMMARY_KEYS = {f"{r}_{figure}" for r in ("cpu", "mem") for figure in ("config", "avg", "std", "max", "percentile")}
NODE_KEYS = SUMMARY_KEYS | {
    "booked_cpu",
    "booked_mem",
    "booked_now_cpu",
    "booked_now_mem",
    "number_of_values",
    "cpu_stable_state",
    "mem_stable_state",
    "vm_list",
}


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- what it writes ---------------------------------------------------------------------------------


def test_all_strategies_leave_a_dump_each_and_a_summary(scroogevm: Run, tmp_path: Path) -> None:
    done = scroogevm("--load", TINY, "--output", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert files_of(tmp_path / "out") == sorted([*(f"dump-{name}.json" for name in STRATEGIES), "summary.csv"])
    rows = (tmp_path / "out" / "summary.csv").read_text().splitlines()
    assert rows[0] == ",".join(SUMMARY_COLUMNS)
    assert [row.split(",")[:2] for row in rows[1:]] == [[name, r] for name in STRATEGIES for r in ("cpu", "mem")]


def test_dump_has_every_key_with_an_entry_per_slice(scroogevm: Run, tmp_path: Path) -> None:
    scroogevm("-l", TINY, "-o", tmp_path / "out", "-s", "greedy", "-c", "95", "-m", "80", "-a", "2")
    dump = strict_json((tmp_path / "out" / "dump-greedy.json").read_bytes())
    trace = json.loads(TINY.read_bytes())
    slices = len(trace["epoch"])
    assert dump["epoch"] == trace["epoch"]
    assert set(dump["model"]) == MODEL_KEYS
    assert set(dump["node"]) == NODE_KEYS
    assert set(dump["vm"]) == set(trace["vm"])
    for columns in (dump["model"], dump["node"], *dump["vm"].values()):
        assert {len(column) for column in columns.values()} == {slices}
    for figures in dump["vm"].values():
        assert set(figures) == SUMMARY_KEYS | {"number_of_values"}
    config = dump["config"]
    assert trace["config"].items() <= config.items()
    assert (config["strategy"], config["cpu_percentile"], config["mem_percentile"]) == ("greedy", 95, 80)
    assert (config["aggregation"], config["stability"]) == (2, "mean")
    percentiles = dump["node"]["cpu_percentile"][0]
    assert list(percentiles) == [str(p) for p in (*range(10, 90, 5), *range(90, 100))]


def test_dump_with_guards_has_what_they_left_and_what_would_be_published_without(
    scroogevm: Run, tmp_path: Path
) -> None:
    bare, guarded = tmp_path / "bare", tmp_path / "guarded"
    for folder, options in ((bare, ["--no-guards"]), (guarded, ["--guards"])):
        assert scroogevm("-l", TINY, "-o", folder, "-s", "percentile", "-c", "50", *options).returncode == 0
    without, with_guards = (strict_json((folder / "dump-percentile.json").read_bytes()) for folder in (bare, guarded))
    assert (without["config"]["guards"], with_guards["config"]["guards"]) == (False, True)
    model, plain = with_guards["model"], without["model"]
    assert set(model) == set(plain)
    for name in ("cpu", "mem"):
        assert model[f"unguarded_{name}"] == plain[f"unguarded_{name}"] == plain[f"published_{name}"]
        pairs = list(zip(model[f"published_{name}"], plain[f"published_{name}"], strict=True))
        assert all(0 <= lowered <= free for lowered, free in pairs)
        assert any(lowered < free for lowered, free in pairs)
        # The first slice has no figure before it.
        assert model[f"violated_{name}"][0] is None
        assert {*model[f"violated_{name}"][1:]} <= {0, 1}


def test_replay_shows_the_bare_strategy_unless_guards_are_asked_for(scroogevm: Run, tmp_path: Path) -> None:
    """Whatever SCHED_GUARDS is: a replay reads no settings."""
    (tmp_path / "cwd" / ".env").write_text("SCHED_GUARDS=1\n")
    command = ("-l", TINY, "-s", "percentile,clt", "--json")
    bare, guarded = (json.loads(scroogevm(*command, *options).stdout) for options in ([], ["--guards"]))
    assert (bare["guards"], guarded["guards"]) == (False, True)
    for resource in ("cpu", "mem"):
        free = [{row["strategy"]: row["published_free"] for row in one[resource]["rows"]} for one in (bare, guarded)]
        assert all(free[1][name] < free[0][name] for name in ("percentile", "clt"))
    text = scroogevm(*command[:-1], "--guards").stdout
    assert text.count("published as free with guards") == 2
    assert "with guards" not in scroogevm(*command[:-1]).stdout
    assert "The rate is that of the open loop" in " ".join(text.split())


def test_dump_of_an_absent_vm_is_null(scroogevm: Run, tmp_path: Path) -> None:
    scroogevm("-l", TINY, "-o", tmp_path / "out", "-s", "borg")
    dump = strict_json((tmp_path / "out" / "dump-borg.json").read_bytes())
    for name, figures in dump["vm"].items():
        for k, present in enumerate(dump["node"]["vm_list"]):
            assert (figures["cpu_config"][k] is None) == (name not in present)
            assert (figures["cpu_percentile"][k] is None) == (name not in present)


def test_single_strategy_leaves_its_dump_in_the_working_directory(scroogevm: Run, tmp_path: Path) -> None:
    done = scroogevm("-l", TINY, "--strategy=nsigma", "--cpu=92.5", "--aggreg=3")
    assert done.returncode == 0
    assert files_of(tmp_path / "cwd") == ["dump-http:node.test:9100metrics_c92.5_m90_a3.json"]


def test_several_strategies_without_a_folder_are_only_compared(scroogevm: Run, tmp_path: Path) -> None:
    done = scroogevm("-l", TINY, "-s", "doa,borg")
    assert done.returncode == 0
    assert files_of(tmp_path / "cwd") == []
    assert done.stdout.count("Too few slices to tell. First is ") == 2


def test_table_shows_every_strategy_for_both_resources(scroogevm: Run) -> None:
    out = scroogevm("-l", TINY, "-s", "all").stdout
    for name in STRATEGIES:
        assert len(re.findall(rf"^ {name} ", out, flags=re.M)) == 2


@pytest.mark.parametrize(("columns", "ratio", "replay"), [(80, False, False), (140, True, False), (240, True, True)])
def test_table_on_a_terminal_of_any_width_cuts_no_figure(columns: int, ratio: bool, replay: bool) -> None:
    """Where there is no room for all columns, those at the right are left out."""
    text = on_terminal(columns, "-l", str(TINY))
    assert "…" not in text
    for name in STRATEGIES:
        rows = [line for line in text.splitlines() if line.split()[:1] == [name] and " of 5 " in line]
        assert len(rows) == 2
        assert all((" -> " in row) is ratio for row in rows)
    assert ("decrease" in text) is replay
    assert all(len(line.rstrip()) <= columns for line in text.splitlines())


def on_terminal(columns: int, *arguments: str, **settings: str) -> str:
    """What scroogevm.py shows on a terminal of so many columns, without colours."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}}
    shown = b""
    with subprocess.Popen(
        [sys.executable, ROOT / "scroogevm.py", *arguments],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env={**env, "TERM": "xterm", **settings},
    ) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # a terminal whose other side is closed
            while piece := os.read(ours, 65536):
                shown += piece
    os.close(ours)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r", "")


def test_status_of_several_masters_is_one_table(tmp_path: Path) -> None:
    from model.publishers.status_file import encode
    from model.status import Figures, NodeStatus, ResourceStatus

    resource = ResourceStatus("ok", Figures(8.0, 4.0, 4.0, 2.0, 0.0, 6.0, 6.0, time.time()), {})
    files = [tmp_path / f"{name}.json" for name in ("first", "second")]
    for path in files:
        path.write_bytes(encode([NodeStatus(path.stem, "clt", time.time(), resource, resource)], 600))
    command = [sys.executable, ROOT / "scroogevm.py"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "env": bare_environment()}
    done = subprocess.run([*command, "--status", *files, "--json"], check=False, **options)
    assert done.returncode == 0
    assert [node["node"] for node in json.loads(done.stdout)] == ["first", "second"]
    missing = subprocess.run([*command, "--status", *files, tmp_path / "none.json"], check=False, **options)
    assert missing.returncode == 1
    assert missing.stderr == f"{tmp_path}/none.json: No such file or directory\n"
    assert "second" in missing.stdout


@pytest.mark.parametrize(("columns", "name_width"), [(80, 12), (100, 24), (160, 41)])
def test_status_on_a_terminal_of_any_width_shows_every_node_and_figure(
    columns: int, name_width: int, tmp_path: Path
) -> None:
    """Names are folded where there is no room, and what can be done without is left out."""
    from model.publishers.status_file import encode
    from model.status import Figures, NodeStatus, ResourceStatus

    said = ResourceStatus("ok", Figures(64.0, 32.0, 32.0, 21.5, 0.0, 42.5, 42.5, time.time(), 0.05, 0.04), {})
    names = [f"http://worker{i}.example.org:9100/metrics" for i in range(3)]
    status = tmp_path / "status.json"
    status.write_bytes(
        encode([NodeStatus(name, "conformal", time.time(), said, said) for name in names], time.time() + 60)
    )
    text = on_terminal(columns, "--status", STATE_ENDPOINT=str(status))
    assert "…" not in text
    assert text.count("5% (4%)") == 6
    assert text.count("42.5") == 3
    assert all(len(line.rstrip()) <= columns for line in text.splitlines())
    shown = "".join(line[1 : 1 + name_width].strip() for line in text[: text.rindex("\n\n")].splitlines()[3:])
    assert shown == "".join(names)


@pytest.mark.parametrize(
    "program",
    [
        *("scroogevm.py", "vmaggreg.py", "vmballooning.py", "misc/evaluate.py", "misc/tracegen.py"),
        *(
            "misc/traceconvert.py",
            "misc/fakeworkers",
            "misc/benchmarks/bench_aggregator.py",
            "misc/benchmarks/bench_backlog.py",
            "misc/benchmarks/bench_ballooning.py",
            "misc/benchmarks/bench_history.py",
        ),
        *("misc/benchmarks/bench_live.py", "misc/benchmarks/bench_scan.py", "misc/benchmarks/bench_stability.py"),
        *("misc/benchmarks/bench_hostile.py", "misc/benchmarks/soak.py"),
    ],
)
def test_program_without_its_libraries_says_how_to_get_them(program: str, tmp_path: Path) -> None:
    needed = {"misc/evaluate.py": [str(TINY), "-o", "out"], "scroogevm.py": ["-l", str(TINY)]}
    command = [sys.executable, "-S", ROOT / program, *needed.get(program, [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    # A unit starts a daemon again: its libraries may be installed at this moment.
    assert done.returncode == (2 if program.startswith("misc/") else 1)
    assert re.fullmatch(
        rf"{Path(program).name}: \w+ is not installed; misc/setup.sh \w+ prepares .venv/bin/python\n",
        done.stderr,
    )


@pytest.mark.parametrize(
    "script", ["launchallfromjson.sh", "tests/run.sh", "misc/setup.sh", "misc/demo.sh", "misc/influxdb.sh"]
)
def test_script_says_what_it_is_for(script: str) -> None:
    for flag in ("-h", "--help"):
        done = subprocess.run([ROOT / script, flag], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout) > 60


def test_folder_that_cannot_be_looked_at_is_one_line(scroogevm: Run) -> None:
    done = scroogevm("-l", TINY, "-o", "x" * 300)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "File name too long" in done.stderr


def test_order_of_strategies_does_not_change_a_dump(scroogevm: Run, tmp_path: Path) -> None:
    scroogevm("-l", TINY, "-o", tmp_path / "a", "-s", "maxpeak")
    scroogevm("-l", TINY, "-o", tmp_path / "b", "-s", "greedy,maxpeak,borg,maxpeak")
    one, two = (tmp_path / folder / "dump-maxpeak.json" for folder in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_order_of_vms_does_not_change_a_dump(scroogevm: Run, tmp_path: Path, write_trace: WriteTrace) -> None:
    trace = json.loads(TINY.read_bytes())
    scroogevm("-l", TINY, "-o", tmp_path / "a")
    trace["vm"] = dict(reversed(trace["vm"].items()))
    scroogevm("-l", write_trace(trace), "-o", tmp_path / "b")
    for name in files_of(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_url_names_the_node(scroogevm: Run, tmp_path: Path) -> None:
    scroogevm("-l", TINY, "-s", "borg", "--url", '["http://other:1/m"]')
    assert files_of(tmp_path / "cwd") == ["dump-http:other:1m_c90_m90_a1.json"]


def test_stability_is_a_choice(scroogevm: Run, tmp_path: Path) -> None:
    for name in ("always", "never", "mean"):
        scroogevm("-l", TINY, "-s", "scroogevm", "-o", tmp_path / name, "--stability", name)
    flags = {
        name: strict_json((tmp_path / name / "dump-scroogevm.json").read_bytes())["node"]["cpu_stable_state"]
        for name in ("always", "never")
    }
    assert flags == {"always": [False] * 4 + [True] * 2, "never": [False] * 6}


def test_debug_logs_each_scope_on_stderr(scroogevm: Run) -> None:
    done = scroogevm("-l", TINY, "-s", "borg,doa", "-d", "1")
    assert len(done.stderr.splitlines()) == 6 * 2
    assert "scope 1 borg: 4 VMs, booked 10.0 cores 27648 MB" in done.stderr


def test_debug_two_draws_the_tiers(scroogevm: Run, tmp_path: Path) -> None:
    # matplotlib and its helpers are not held to -X dev.
    done = subprocess.run(
        [sys.executable, ROOT / "scroogevm.py", "-l", TINY, "-s", "doa", "-d", "2", "-o", tmp_path / "out"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert (tmp_path / "out" / "tiers-doa.png").read_bytes().startswith(b"\x89PNG")


def test_gap_of_the_node_is_null_in_the_dump(
    scroogevm: Run, tmp_path: Path, trace_object: TraceObject, write_trace: WriteTrace
) -> None:
    trace_object["node"]["raw_data"][2] = {}
    scroogevm("-l", write_trace(trace_object), "-o", tmp_path / "out")
    for name in STRATEGIES:
        dump = strict_json((tmp_path / "out" / f"dump-{name}.json").read_bytes())
        assert dump["model"]["free_cpu"][2] is None
        assert dump["model"]["published_cpu"][2] == 0
        assert dump["node"]["cpu_percentile"][2] is None
        assert dump["model"]["free_cpu"][3] is not None


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a\nb\x00c", "<b>&'\"", "n" * 400, "ü" * 300, "", "[red]x[/red]", "$\\frac"]
)
def test_any_node_name_is_reported_and_becomes_a_file_name(
    name: str, scroogevm: Run, tmp_path: Path, trace_object: TraceObject, write_trace: WriteTrace
) -> None:
    trace_object["config"]["node_name"] = name
    trace_object["vm"][name] = trace_object["vm"].pop("a")
    path, here = write_trace(trace_object), tmp_path / "cwd"
    for more in ([], ["-o", "out", "--report", "-d", "2"], ["-o", "out", "--compact"]):
        done = scroogevm("-l", path, "-s", "borg", *more)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert len([file for file in files_of(here) if file.startswith("dump-") and len(os.fsencode(file)) <= 255]) == 1
    page = (here / "out" / "report.html").read_text()
    assert "<b>&'" not in page


# --- what it refuses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "SCHED_NODES"),
        (["--frobnicate"], "--frobnicate"),
        (["--strat", "doa"], "--strat"),
        (["-l", TINY, "-s", "magic"], "'magic' is none of percentile"),
        (["-l", TINY, "-s", ""], "''"),
        (["-l", TINY, "-c", "101"], "'101'"),
        (["-l", TINY, "-c", "nan"], "'nan'"),
        (["-l", TINY, "-m", "-1"], "'-1'"),
        (["-l", TINY, "-a", "0"], "'0'"),
        (["-l", TINY, "-a", "1.5"], "'1.5'"),
        (["-l", TINY, "-d", "x"], "'x'"),
        (["-l", TINY, "--stability", "lstm"], "lstm"),
        (["-l", TINY, "--risk", "2"], "'2'"),
        (["-l", TINY, "--url", "x"], "neither an http(s) URL nor JSON"),
        (["-l", TINY, "--url", "{}"], "not a list"),
        (["-l", TINY, "--url", '["a", "b"]'], "2 nodes"),
        (["-l", TINY, "--report"], "--output"),
        (["-l", TINY, "--compact"], "--output"),
        (["--compact", "--once"], "--load"),
        (["-l", TINY, "-o", ""], "--output"),
        (["-l", TINY, "-o", TINY], "not a folder"),
        (["-l", TINY, "-o", TINY / "below"], "nothing was written"),
        (["-l", "no-such-file.json"], "no-such-file.json: No such file"),
        (["-l", "."], "Is a directory"),
        (["-l", ROOT / "README.md"], "not JSON"),
        (["-l", TINY, "extra"], "extra"),
    ],
    ids=str,
)
def test_mistake_is_one_line_and_exit_code_two(
    scroogevm: Run, tmp_path: Path, arguments: list[Any], words: str
) -> None:
    done = scroogevm(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert words in done.stderr
    assert done.stdout == ""
    assert files_of(tmp_path / "cwd") == []


def test_malformed_trace_leaves_nothing_behind(
    scroogevm: Run, tmp_path: Path, trace_object: TraceObject, write_trace: WriteTrace
) -> None:
    trace_object["vm"]["a"]["raw_data"][5]["cpu_usage"][2] = "much"
    done = scroogevm("-l", write_trace(trace_object), "-o", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "vm.a.raw_data[5].cpu_usage[2]: expected a number or null, got str" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="needs root for a small file system")
def test_full_disk_leaves_the_older_results_whole(scroogevm: Run, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        (disk / "summary.csv").write_text("old")
        done = scroogevm("-l", TINY, "-o", disk)
        assert done.returncode == 2
        assert "No space left on device; nothing was written" in done.stderr
        assert files_of(disk) == ["summary.csv"]
        assert (disk / "summary.csv").read_text() == "old"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_failure_at_the_last_file_leaves_none(scroogevm: Run, tmp_path: Path) -> None:
    (tmp_path / "out" / "summary.csv").mkdir(parents=True)
    done = scroogevm("-l", TINY, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "nothing was written" in done.stderr
    assert files_of(tmp_path / "out") == ["summary.csv"]


def test_folders_made_for_nothing_go_again(scroogevm: Run, tmp_path: Path) -> None:
    done = scroogevm("-l", TINY, "-o", tmp_path / "a" / "b" / ("x" * 300))
    assert done.returncode == 2
    assert not (tmp_path / "a").exists()


def test_link_is_written_through_and_a_pipe_is_left_alone(tmp_path: Path) -> None:
    from model.common.atomic_files import write_atomically

    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Not a regular file"):
        write_atomically(tmp_path / "pipe", b"new")
    assert files_of(tmp_path) == ["link", "pipe", "target"]


def test_jump_in_time_is_warned_about(scroogevm: Run, trace_object: TraceObject, write_trace: WriteTrace) -> None:
    trace_object["epoch"][3:] = [9000, 10800, 12600]
    done = scroogevm("-l", write_trace(trace_object))
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "epoch[3] is 3600 s after the slice before, not 1800" in done.stderr


@pytest.mark.parametrize("gone", ["mem mem_usage", "cpu cpu_usage", "mem_usage", "cpu mem cpu_usage mem_usage"])
def test_trace_without_a_resource_is_replayed_for_the_other(
    gone: str, tmp_path: Path, trace_object: TraceObject, write_trace: WriteTrace
) -> None:
    for raw in trace_object["node"]["raw_data"]:
        for key in gone.split():
            del raw[key]
    command = [
        sys.executable,
        ROOT / "scroogevm.py",
        "-l",
        write_trace(trace_object),
        "-o",
        tmp_path / "out",
        "--report",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_nothing_behind(tmp_path: Path, sent: signal.Signals) -> None:
    trace = tmp_path / "trace.json"
    subprocess.run(
        [sys.executable, ROOT / "misc" / "tracegen.py", trace, "--vms=60", "--samples=60"], check=True, timeout=120
    )
    process = subprocess.Popen(
        [sys.executable, ROOT / "scroogevm.py", "-l", trace, "-o", tmp_path / "out", "--report"],
        stderr=subprocess.PIPE,
        text=True,
    )
    # In the middle of writing: the first temporary file is there.
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").is_dir() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()


def test_interruption_is_not_lost_in_a_destructor() -> None:
    """An exception in a destructor is printed and dropped."""
    program = """
import os, signal, sys, time
from model.cli.main import run_interruptible

class Taken:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

def job():
    Taken()
    time.sleep(20)
    return 0

sys.exit(run_interruptible(job, lambda: 130))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=15, check=False
    )
    assert (done.returncode, done.stderr) == (130, "")


def test_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} {ROOT / 'scroogevm.py'} -l {TINY} | head -1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""


# --- what it costs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["-h"], ["--version"], ["-l", str(TINY)], ["-l", str(TINY), "--json"]])
def test_output_that_cannot_be_written_is_one_line(scroogevm: Run, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = scroogevm(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "scroogevm.py: standard output: No space left on device\n")


def test_closed_output_is_no_error_and_no_file_takes_its_place(scroogevm: Run, tmp_path: Path) -> None:
    def close() -> None:
        os.close(1)

    done = scroogevm(
        "-l", TINY, "-s", "borg", "-o", tmp_path / "out", stdout=None, capture_output=False, preexec_fn=close
    )
    assert done.returncode == 0
    strict_json((tmp_path / "out" / "dump-borg.json").read_bytes())
    assert (tmp_path / "out" / "summary.csv").read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--hlep", "unrecognized option --hlep; did you mean --help?"),
        ("--strategie=borg", "unrecognized option --strategie; did you mean --strategy?"),
        ("--xyzzy", "unrecognized option --xyzzy"),
    ],
)
def test_misspelt_option_is_named_with_the_one_that_was_meant(scroogevm: Run, option: str, words: str) -> None:
    done = scroogevm(option)
    assert (done.returncode, done.stderr) == (2, f"scroogevm.py: {words}\n")


@pytest.mark.parametrize("name", STABILITY_DETECTORS)
def test_every_stability_detector_of_the_registry_is_accepted(scroogevm: Run, name: str) -> None:
    assert scroogevm("-l", TINY, "-s", "greedy,scroogevm", f"--stability={name}").returncode == 0
    assert name in scroogevm("-h").stdout


def test_help_and_mistakes_import_nothing_heavy() -> None:
    for arguments in (["-h"], ["--frobnicate"], ["--version"]):
        code = (
            "import sys, runpy\n"
            f"sys.argv = ['scroogevm.py', *{arguments}]\n"
            "try:\n    runpy.run_path('scroogevm.py', run_name='__main__')\n"
            "except SystemExit:\n    pass\n"
            "print(sorted({'numpy', 'msgspec', 'rich', 'pandas', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stderr.splitlines()[-1] == "[]"


def test_replay_without_pictures_needs_no_pandas_and_no_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys; from model.commands import scroogevm\n"
        f"scroogevm.main(['-l', {str(TINY)!r}, '-o', {str(tmp_path / 'out')!r}])\n"
        "heavy = {'pandas', 'matplotlib', 'jinja2', 'libvirt', 'influxdb_client'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines() == ["[]"]


def test_help_names_every_option_and_strategy(scroogevm: Run) -> None:
    text = scroogevm("-h").stdout
    for word in (
        *STRATEGIES,
        "--strategy",
        "--debug",
        "--load",
        "--output",
        "--cpu",
        "--mem",
        "--aggreg",
        "--url",
        "--stability",
    ):
        assert word in text


def test_help_lists_the_strategies_in_the_order_of_the_registry(scroogevm: Run) -> None:
    lines = scroogevm("-h").stdout.partition("strategies (T is")[2].partition("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(STRATEGIES)
    assert lines[-1].split(maxsplit=1)[1] == STRATEGIES["clt"].summary


def test_trace_is_read_once_whatever_the_number_of_strategies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from model.commands import scroogevm
    from model.replay import command as offline

    reads = []
    real = offline.read_trace
    monkeypatch.setattr(offline, "read_trace", lambda path: reads.append(path) or real(path))
    assert scroogevm.main(["-l", str(TINY), "-o", str(tmp_path / "out")]) == 0
    assert reads == [str(TINY)]


@pytest.mark.parametrize("program", ["scroogevm.py", "vmaggreg.py", "vmballooning.py"])
def test_settings_of_the_other_programs_are_not_misspelt(program: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        (ROOT / "dotenv").read_text().replace("\n#AGG", "\nAGG").replace("\n#BALL", "\nBALL")
    )
    command = [sys.executable, ROOT / program, "--check-config"]
    environment = {**bare_environment(), "LIBVIRT_NODES": '{"http://w1": "qemu:///system"}', "SCHED_SETLE_S": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "settings ok\n")
    [line] = done.stderr.splitlines()
    assert line.endswith("environment: SCHED_SETLE_S is not a setting; did you mean SCHED_SETTLE_S?")
    assert [path.name for path in tmp_path.iterdir()] == [".env"]
