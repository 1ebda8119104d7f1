"""scroogevm.py as a daemon beside a real OpenStack Placement: the settings of the command line, and a kill."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from pathlib import Path

import pytest

from model.publishers.placement.written import read_written
from model.store.sqlite import SqliteStore
from tests.support.placement import between, ratios, set_ratio
from tests.support.servers import placement_server, wait_for
from tests.system.test_live import NODES, Environment, end, env, run, running, store, wait_for_samples, written

__all__ = ["env", "store"]  # fixtures

LOGIN = {"PLACEMENT_PROVIDERS": "auto", "PLACEMENT_TOKEN": "admin", "PLACEMENT_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("PLACEMENT_PROVIDERS", "automatic"),
        ("PLACEMENT_PROVIDERS", '{"*": "w1"}'),
        ("PLACEMENT_SKIP", "pinned"),
        ("PLACEMENT_SKIP", "pinned=true"),
        ("PLACEMENT_POLL_S", "0"),
        ("PLACEMENT_STATE_PATH", "/"),
        ("PLACEMENT_ROUND_TIMEOUT_S", "-1"),
    ],
)
def test_bad_value_ends_the_program_and_its_key_is_named(env: Environment, key: str, value: str) -> None:
    done = run({**env, **LOGIN, key: value}, "--check")
    assert done.returncode == 2
    assert key in done.stderr
    assert "Traceback" not in done.stderr


def test_killed_daemon_leaves_a_whole_file_and_goes_on_from_it(
    env: Environment, store: SqliteStore, tmp_path: Path
) -> None:
    """Three nodes whose providers are found by host name; the third one is left alone."""
    state_path = tmp_path / "own" / "written.json"
    armed, reached, release = threading.Event(), threading.Event(), threading.Event()

    def hook(method: str, path: str, token: str) -> None:
        if armed.is_set() and method == "PUT":
            reached.set()
            release.wait(60)

    with placement_server(tmp_path) as server, contextlib.ExitStack() as started:
        inventories = {"VCPU": {"total": 16, "allocation_ratio": 9.0}, "MEMORY_MB": {"total": 32768}}
        first, second, alone = (server.provider(name, **inventories) for name in ("w1.example.org", "w2", "w3"))
        server.set_traits(alone, "CUSTOM_ALONE")
        url = started.enter_context(between(server, hook))
        env |= {
            **LOGIN,
            **{"PLACEMENT_ENDPOINT": url, "PLACEMENT_SKIP": "CUSTOM_ALONE", "PLACEMENT_POLL_S": "1"},
            "PLACEMENT_STATE_PATH": str(state_path),
        }
        started.enter_context(written(store))
        started.callback(release.set)
        wait_for_samples(store)
        with running(env, "-s", "borg") as killed:
            wait_for(lambda: state_path.exists() and read_written(state_path).keys() == {first, second})
            wait_for(lambda: ratios(server, first)[0] < 9.0)
            armed.set()
            # A look finds it, also if the figures of the slices stay the same.
            set_ratio(server, second, 8.0)
            assert reached.wait(60)
            killed.send_signal(signal.SIGKILL)
            killed.wait(30)
        armed.clear()
        release.set()
        assert read_written(state_path).keys() == {first, second}
        assert not [path for path in state_path.parent.iterdir() if path != state_path and path.stat().st_size == 0]
        set_ratio(server, first, 8.0)
        with running(env, "-s", "borg") as daemon:
            wait_for(lambda: ratios(server, first)[0] < 8.0)
            wait_for(lambda: ratios(server, second)[0] < 8.0)
            rows = {row["target"]: row for row in json.loads(run(env, "--check", "--json").stdout)}
            log = end(daemon)
        assert daemon.returncode == 0
        assert "VCPU ratio: another process has set 8 in place of" in log
        assert "cannot be read" not in log
        assert rows["placement http://w3:9100/metrics"]["message"] == "w3: left alone, CUSTOM_ALONE"
        assert rows["placement http://w1:9100/metrics"]["message"].startswith("w1.example.org: VCPU 16 of 16 cores")
        assert ratios(server, alone)[0] == 9.0


def test_settings_take_effect_together_in_one_run(env: Environment, store: SqliteStore, tmp_path: Path) -> None:
    """w1 is found by its host name, w2 is listed, w3 has a trait that leaves it alone. Nothing is allocated."""
    with placement_server(tmp_path) as server:
        inventories = {"VCPU": {"total": 16}, "MEMORY_MB": {"total": 32768}}
        names = ("w1.example.org", "second", "w3")
        first, second, third = (server.provider(name, **inventories) for name in names)
        server.call("PUT", "/traits/CUSTOM_ALONE")
        traits = {"resource_provider_generation": 1, "traits": ["CUSTOM_ALONE"]}
        server.call("PUT", f"/resource_providers/{third}/traits", traits)
        state = tmp_path / "elsewhere" / "written.json"
        env |= {
            **{"PLACEMENT_TOKEN": "admin", "PLACEMENT_ENDPOINT": server.url, "PLACEMENT_SKIP": "CUSTOM_ALONE"},
            **{"PLACEMENT_PROVIDERS": json.dumps({"*": "auto", NODES[1]: "second"})},
            **{"PLACEMENT_ALLOW_BELOW_ONE": "1", "PLACEMENT_STATE_PATH": str(state)},
        }

        def has_written_all() -> bool:
            # On a busy machine some samples of a slice may be late.
            assert run(env, "--once").returncode == 0
            return all(len(record.ratios) == 2 for record in read_written(state).values())

        with written(store):
            wait_for_samples(store)
            wait_for(has_written_all)
        found = read_written(state)
        assert {provider: record.node for provider, record in found.items()} == {first: NODES[0], second: NODES[1]}
        for provider in (first, second):
            assert ratios(server, provider)[0] == found[provider].ratios["VCPU"] < 1
        assert ratios(server, third)[0] == 1.0
        rows = run(env, "--check", "--json").stdout
        assert "w1.example.org: VCPU 16 of 16 cores" in rows
        assert "w3: left alone, CUSTOM_ALONE" in rows
