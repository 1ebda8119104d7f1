"""Fixtures and helpers that several test modules share."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from model.store.base import Store
    from tests.support.guests import Host, Sshd

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared"

TraceObject = dict[str, Any]

_SETTINGS = (
    "AGGREG",
    "BALLOONING",
    "INFLUXDB",
    "LIBVIRT",
    "METRICS",
    "OS_",
    "PLACEMENT",
    "PROMETHEUS",
    "SCHED",
    "STATE",
    "STORE",
)
_buckets = itertools.count()

#: Marks the processes that the tests start: those that are left at the end make the run fail.
_MARK = "SCROOGEVM_TEST_RUN"


def pytest_configure(config: pytest.Config) -> None:
    """Mark this run in the environment, which every process that a test starts inherits."""
    os.environ.setdefault(_MARK, f"{os.getpid()}-{time.time_ns()}")


#: Modules that take longest, most of it waiting: they start first, so that none is left alone at the end.
_LONGEST = (
    *("test_vmballooning", "test_demo", "test_whole_system", "test_live", "test_guests", "test_notebook"),
    *("test_evaluate_cluster", "test_vmaggreg", "test_real_traces", "test_placement_failures", "test_readme_commands"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest modules first; the others keep their order."""
    order = {name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the processes that tests left behind, and fail for them."""
    if hasattr(session.config, "workerinput"):
        return  # a worker of pytest-xdist: the controller looks, when all of them have ended
    deadline = time.monotonic() + 5
    while (left := _left_behind()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid, command in left.items():
        print(f"\nleft behind by a test: process {pid}: {command}", file=sys.stderr)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _left_behind() -> dict[int, str]:
    """Command lines of the processes with the mark of this run, by PID; not pytest's own."""
    mark = f"{_MARK}={os.environ[_MARK]}".encode()
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if command and "execnet" not in command and "resource_tracker" not in command:
                    found[int(folder.name)] = command[:200]
    return found


def lists(
    time: Sequence[float | None],
    cpu: float,
    mem: float,
    cpu_usage: Sequence[float | None],
    mem_usage: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """One slice of a node or a VM."""
    return {
        "time": list(time),
        "cpu": [cpu] * len(time),
        "mem": [mem] * len(time),
        "cpu_usage": list(cpu_usage),
        "mem_usage": list(mem_usage) if mem_usage is not None else [100.0 * (u or 0) for u in cpu_usage],
    }


def build_trace(slices: int = 6, positions: int = 1, historical: int = 1) -> TraceObject:
    """A small legal trace: a node of 16 cores, two VMs of 4 and 2 vCPUs, three samples a slice."""
    times = [[1800.0 * k + 600 * i for i in range(3)] for k in range(slices)]
    return {
        "config": {
            "node_name": "http://node.test:9100/metrics",
            "node_scope": 1800 * positions,
            "slice_scope": 1800,
            "historical_occurences": historical,
        },
        "epoch": [1800 * (k + 1) for k in range(slices)],
        "node": {
            "raw_data": [
                {**lists(times[k], 16.0, 32768.0, [1.0 + k % 3, 2.0, 3.0]), "vm": ["a", "b"]} for k in range(slices)
            ]
        },
        "vm": {
            "a": {"raw_data": [lists(times[k], 4.0, 4096.0, [0.5, 0.6, 0.7 + k / 10]) for k in range(slices)]},
            "b": {"raw_data": [lists(times[k], 2.0, 2048.0, [0.1, 0.2, 0.3]) for k in range(slices)]},
        },
    }


@pytest.fixture
def event_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Log records of ScroogeVM, recoveries included."""
    caplog.set_level(logging.INFO, "scroogevm")
    return caplog


@pytest.fixture
def trace_object() -> TraceObject:
    """A small legal trace to be damaged at will."""
    return copy.deepcopy(build_trace())


@pytest.fixture
def write_trace(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes an object, or text, as ``trace.json``."""

    def write(trace: Any) -> Path:
        path = tmp_path / "trace.json"
        path.write_bytes(trace if isinstance(trace, bytes) else json.dumps(trace).encode())
        return path

    return write


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def scroogevm(tmp_path: Path) -> Run:
    """Runs scroogevm.py in an empty folder: in this process, or in one of its own where settings of it are given."""
    here = tmp_path / "cwd"
    here.mkdir()

    def run(*arguments: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in arguments]
        if not settings:
            return _run_here(words, here)
        return subprocess.run(  # noqa: PLW1510  # check is among the settings
            [sys.executable, "-X", "dev", "-W", "error", ROOT / "scroogevm.py", *words],
            **{"cwd": here, "capture_output": True, "text": True, "timeout": 120, "check": False, **settings},
        )

    return run


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _run_here(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line of scroogevm.py in this process, which saves the start of an interpreter."""
    from model.commands.scroogevm import main

    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    hook, root = sys.unraisablehook, logging.getLogger()
    handlers, level, ours = root.handlers[:], root.level, logging.getLogger("scroogevm").level
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _working_in(folder):
            try:
                code = main(arguments)
            except SystemExit as exit_:
                code = exit_.code if isinstance(exit_.code, int) else 1
    finally:
        for number, handler in before:
            signal.signal(number, handler)
        sys.unraisablehook = hook
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.getLogger("scroogevm").setLevel(ours)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def bare_environment() -> dict[str, str]:
    """This process's environment without a setting of ours."""
    return {key: value for key, value in os.environ.items() if not key.startswith(_SETTINGS)}


# --- stores, hosts and guests: what they need is imported when a test asks for them ---------------------


@pytest.fixture(scope="session")
def influx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """URL, token and organisation of an InfluxDB."""
    from tests.support.servers import influx_server

    with influx_server(tmp_path_factory.mktemp("influxd")) as (url, token, org, _):
        yield url, token, org


@pytest.fixture(params=["sqlite", "influx"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each kind."""
    from model.store.influxdb import InfluxStore
    from model.store.sqlite import SqliteStore
    from tests.support.servers import make_bucket, settings_of_bucket

    made: Store
    if request.param == "sqlite":
        made = SqliteStore(tmp_path / "store.sqlite", 86400)
    else:
        url, token, org = request.getfixturevalue("influx")
        bucket = f"bucket{next(_buckets)}"
        make_bucket(url, token, org, bucket)
        made = InfluxStore(settings_of_bucket(url, token, org, bucket))
    yield made
    made.close()


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host of real guests."""
    from tests.support.guests import Host, missing

    if reason := missing():
        pytest.skip(f"no real guests here: {reason}")
    with Host() as host:
        yield host


@pytest.fixture(scope="module")
def sshd(host: Host) -> Iterator[Sshd]:
    """The host, reached by ssh."""
    from tests.support.guests import Sshd, missing_ssh

    if reason := missing_ssh():
        pytest.skip(reason)
    with Sshd(host) as sshd:
        yield sshd


def strict_json(text: str | bytes) -> Any:
    """Decode JSON that has no NaN in it."""

    def refuse(literal: str) -> Any:
        raise AssertionError(f"{literal} is not JSON")

    return json.loads(text, parse_constant=refuse)
