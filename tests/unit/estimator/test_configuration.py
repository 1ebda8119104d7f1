"""Options and settings of a run."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from model.common.environment import SettingsError
from model.common.errors import UsageError
from model.estimator.configuration import load_configuration
from model.estimator.options import EstimatorOptions
from model.estimator.settings import nodes_of_option
from tests.unit.estimator.support import NODES


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings in the environment, in a folder without ``.env``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_ENDPOINT", str(tmp_path / "status.json"))


def options_with(**model: Any) -> EstimatorOptions:
    return EstimatorOptions(NODES, None, debug=0, once=False, model=model)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        (None, ()),
        ("http://a:9100/metrics", ("http://a:9100/metrics",)),
        ("https://user:secret@a/x?target=http://b,c", ("https://a/x?target=http://b,c",)),
        ('["http://a", "http://b"]', ("http://a", "http://b")),
    ],
)
def test_url_option_is_a_url_or_a_list_of_urls(text: str | None, nodes: tuple[str, ...]) -> None:
    assert nodes_of_option(text) == nodes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://a, http://b", "is neither an http(s) URL nor JSON"),
        ("worker1", "is neither an http(s) URL nor JSON"),
        ("[]", 'is not a list of URLs such as ["http://node:9100/metrics"]'),
    ],
)
def test_other_texts_of_the_url_option_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        nodes_of_option(text)
    assert str(error.value) == f"--url: {message}"


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, checkpoints = tmp_path / "a", tmp_path / "b"
    monkeypatch.setenv("STATE_ENDPOINT", str(status))
    monkeypatch.setenv("SCHED_MEMORY_PATH", str(checkpoints))
    load_configuration(options_with())
    status.mkdir()
    checkpoints.mkdir()
    with pytest.raises(SettingsError) as error:
        load_configuration(options_with())
    assert f"STATE_ENDPOINT: {status} is a folder, not a file" in error.value.faults
    assert any(fault.endswith(f": {checkpoints} is a folder, not a file") for fault in error.value.faults)


def test_settings_are_read_at_each_load_and_options_override_them(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_configuration(options_with())
    assert (first.model.strategies, first.settings.nodes) == (("clt",), NODES)
    monkeypatch.setenv("SCHED_STRATEGY", "doa,rclike")
    monkeypatch.setenv("SCHED_SCOPE_HISTORICAL", "7")
    second = load_configuration(options_with())
    assert (second.model.strategies, second.model.historical) == (("doa", "rclike"), 7)
    assert first.of_checkpoints != second.of_checkpoints
    assert load_configuration(options_with(strategy="borg")).model.strategies == ("borg",)


def test_name_of_the_master_is_the_host_name_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_configuration(options_with()).settings.master == socket.gethostname()
    monkeypatch.setenv("SCHED_MASTER", "left, room=1")
    assert load_configuration(options_with()).settings.master == "left, room=1"
    monkeypatch.setenv("SCHED_MASTER", "left\\")
    with pytest.raises(SettingsError) as error:
        load_configuration(options_with())
    assert error.value.faults == ["SCHED_MASTER: ends with a backslash, which a tag of InfluxDB cannot"]


def test_guards_are_on_unless_setting_or_option_switches_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """State that was computed with guards is not continued without them."""
    guarded = load_configuration(options_with())
    assert guarded.model.guarded is True
    assert load_configuration(options_with(guards=False)).model.guarded is False
    monkeypatch.setenv("SCHED_GUARDS", "0")
    bare = load_configuration(options_with())
    assert bare.model.guarded is False
    assert load_configuration(options_with(guards=True)).model.guarded is True
    assert bare.of_checkpoints != guarded.of_checkpoints
    monkeypatch.setenv("SCHED_GUARDS", "2")
    with pytest.raises(SettingsError) as error:
        load_configuration(options_with())
    assert error.value.faults == ["SCHED_GUARDS: '2' is not a whole number from 0 to 1"]


def test_each_strategy_with_a_target_limits_the_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_configuration(options_with(strategy="clt", risk=0.5)).model.cpu.risk == 0.5
    for strategy, risk, most in (("clt", 0.51, 0.5), ("clt", 0.0, 0.5), ("conformal,clt", 0.4, 0.3)):
        with pytest.raises(SettingsError) as error:
            load_configuration(options_with(strategy=strategy, risk=risk))
        name = strategy.partition(",")[0]
        assert error.value.faults == [f"--risk: {name} supports target risks above 0 and up to {most:g}, not {risk:g}"]
    monkeypatch.setenv("SCHED_RISK_MEM", "0.6")
    with pytest.raises(SettingsError) as error:
        load_configuration(options_with(strategy="clt"))
    assert error.value.faults == ["SCHED_RISK_MEM: clt supports target risks above 0 and up to 0.5, not 0.6"]
    assert load_configuration(options_with(strategy="nsigma")).model.mem.risk == 0.6


@pytest.mark.parametrize("model", [{"strategy": "no-such"}, {"strategy": "conformal", "risk": 0.9}])
def test_wrong_model_options_are_settings_errors(model: dict[str, Any]) -> None:
    """A reload keeps the previous configuration then."""
    with pytest.raises(SettingsError):
        load_configuration(options_with(**model))
