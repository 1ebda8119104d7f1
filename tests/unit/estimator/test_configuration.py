"""Options and settings of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from model.common.environment import SettingsError
from model.common.errors import UsageError
from model.estimator.configuration import load_configuration, load_settings
from model.estimator.options import EstimatorOptions, parse_url_option
from tests.unit.estimator.support import NODES

MODEL = {"strategy": "borg", "cpu": 90.0, "mem": 90.0, "aggreg": 1, "stability": "mean", "risk": 0.05}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings in the environment, in a folder without ``.env``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATE_ENDPOINT", str(tmp_path / "status.json"))


def options_with(**model: Any) -> EstimatorOptions:
    values = {**MODEL, "risk_cpu": None, "risk_mem": None, **model}
    return EstimatorOptions(NODES, None, 0, False, SimpleNamespace(**values))


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
    assert parse_url_option(text) == nodes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://a,http://b", 'is neither a URL nor a list of URLs such as ["http://node:9100/metrics"]'),
        ("http://a/m, http://b/m", 'is neither a URL nor a list of URLs such as ["http://node:9100/metrics"]'),
        ("worker1", 'is neither a URL nor a list of URLs such as ["http://node:9100/metrics"]'),
        ("[" * 100_000, 'is neither a URL nor a list of URLs such as ["http://node:9100/metrics"]'),
        ("[]", 'is not a list of URLs such as ["http://node:9100/metrics"]'),
    ],
)
def test_other_texts_of_the_url_option_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_url_option(text)
    assert str(error.value) == f"--url: {message}"


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, checkpoints = tmp_path / "a", tmp_path / "b"
    monkeypatch.setenv("STATE_ENDPOINT", str(status))
    monkeypatch.setenv("SCHED_MEMORY_PATH", str(checkpoints))
    load_settings(NODES)
    status.mkdir()
    checkpoints.mkdir()
    with pytest.raises(SettingsError) as error:
        load_settings(NODES)
    assert error.value.faults == [
        f"STATE_ENDPOINT: {status} is a folder, not a file",
        f"SCHED_MEMORY_PATH: {checkpoints} is a folder, not a file",
    ]


def test_settings_and_model_options_are_read_at_each_load(monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_with()
    first = load_configuration(options)
    assert (first.model.strategies, first.settings.nodes) == (("borg",), NODES)
    options.model.strategy = "doa,rclike"
    monkeypatch.setenv("SCHED_SCOPE_HISTORICAL", "7")
    second = load_configuration(options)
    assert (second.model.strategies, second.model.historical) == (("doa", "rclike"), 7)
    assert first.of_checkpoints != second.of_checkpoints


def test_default_strategy_is_scroogevm() -> None:
    assert load_configuration(options_with(strategy=None)).model.strategies == ("scroogevm",)


@pytest.mark.parametrize("model", [{"strategy": "no-such"}, {"strategy": "conformal", "risk": 0.9}])
def test_wrong_model_options_are_settings_errors(model: dict[str, Any]) -> None:
    """A reload keeps the previous configuration then."""
    with pytest.raises(SettingsError):
        load_configuration(options_with(**model))
