"""Settings: limits, faults, older names, misspelt keys, and the files that are generated from them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from misc.configuration import main
from model.aggregator.settings import TIMEOUT_S, aggregator_settings
from model.ballooning.settings import ballooning_settings
from model.commands.configuration import render_dotenv, render_page, sections
from model.common.environment import Environment, SettingsError, environment, misspelt
from model.common.settings import SETTINGS
from model.estimator.settings import estimator_settings
from tests.conftest import ROOT

STUBS = {"AGGREG_STUB_LIST": '[["http://w1:9100/metrics", "vmprobe"]]'}
HOSTS = {"LIBVIRT_NODES": '{"http://w1:9100/metrics": "qemu+ssh://root@w1/system"}'}
READERS = (aggregator_settings, ballooning_settings, estimator_settings)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for key in list(os.environ):
        if key in SETTINGS:
            monkeypatch.delenv(key)
    return tmp_path


def faults(**values: str) -> list[str]:
    """All faults of the three daemons' settings."""
    found: dict[str, None] = {}
    for read in READERS:
        try:
            read(Environment({**STUBS, **HOSTS, **values}))
        except SettingsError as error:
            found |= dict.fromkeys(error.faults)
    return list(found)


def test_generated_files_are_those_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0, capsys.readouterr().out


def test_files_that_differ_are_named_and_written_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("misc.configuration.ROOT", tmp_path)
    (tmp_path / "dotenv").write_text("AGGREG_STUB_LIST=\n")
    assert main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "dotenv differs from the settings",
        "docs/configuration.md differs from the settings",
    ]
    assert main(["--write"]) == 0
    assert (tmp_path / "dotenv").read_text() == render_dotenv()
    assert (tmp_path / "docs" / "configuration.md").read_text() == render_page()


def test_each_setting_stands_in_one_section_with_a_sentence_about_it() -> None:
    listed = [setting.key for _, settings in sections() for setting in settings]
    assert sorted(listed) == sorted(SETTINGS)
    for setting in SETTINGS.values():
        assert setting.description.strip().endswith("."), setting.key


def test_example_file_gives_the_defaults(folder: Path) -> None:
    """What ``dotenv`` shows in its commented lines is what the code takes without them."""
    text = (ROOT / "dotenv").read_text()
    examples = {key for key, setting in SETTINGS.items() if setting.example}
    lines = [line.removeprefix("#") for line in text.splitlines() if line.partition("=")[0].lstrip("#") in SETTINGS]
    shown = [line for line in lines if line.partition("=")[0] not in examples - set(STUBS) - set(HOSTS)]
    assert len(lines) == len(SETTINGS)
    (folder / ".env").write_text("\n".join(shown))
    required = {key: SETTINGS[key].example for key in (*STUBS, *HOSTS)}
    for read in READERS:
        assert read(environment()) == read(Environment(required))


#: Any text is a value of these.
FREE_TEXT = {
    *("METRICS_ADDRESS", "STATE_ENDPOINT", "STORE_PATH", "SCHED_CHECKPOINT_PATH", "BALLOONING_JOURNAL_PATH"),
    "PLACEMENT_STATE_PATH",
    *("AGGREG_SPOOL_PATH", "SCHED_MASTER"),
    *("PROMETHEUS_TOKEN", "PROMETHEUS_USER", "PROMETHEUS_PASSWORD"),
    *("INFLUXDB_TOKEN", "INFLUXDB_ORG", "INFLUXDB_BUCKET", "INFLUXDB_COARSE_BUCKET", "PLACEMENT_TOKEN"),
    *(key for key in SETTINGS if key.startswith("OS_") and key not in {"OS_AUTH_TYPE", "OS_AUTH_URL", "OS_CACERT"}),
    *(key for key, setting in SETTINGS.items() if setting.section == "misc/influxdb.sh only"),
}


@pytest.mark.parametrize("key", sorted(set(SETTINGS) - FREE_TEXT))
def test_wrong_value_is_a_fault_that_names_its_key(key: str) -> None:
    store = "PROMETHEUS_URL" if key.startswith("PROMETHEUS_") else "INFLUXDB_URL"
    together = {store: "http://127.0.0.1:8086", "PLACEMENT_PROVIDERS": '{"http://w1": "w1"}'}
    assert any(fault.startswith(f"{key}: ") for fault in faults(**{**together, key: "]nonsense"}))


PROMETHEUS = {"PROMETHEUS_URL": "http://127.0.0.1:9090"}


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"INFLUXDB_URL": "http://127.0.0.1:8086"}, "PROMETHEUS_URL: INFLUXDB_URL is set too"),
        ({"PROMETHEUS_TOKEN": "t", "PROMETHEUS_USER": "u"}, "PROMETHEUS_TOKEN: PROMETHEUS_USER is set too"),
        ({"PROMETHEUS_PASSWORD": "p"}, "PROMETHEUS_USER: is not set; PROMETHEUS_PASSWORD requires it"),
        ({"PROMETHEUS_MATCH": 'cluster="a",'}, ""),
        ({"PROMETHEUS_MATCH": 'cluster="a"} or up{x="'}, 'PROMETHEUS_MATCH: \'cluster="a"} or up'),
        ({"PROMETHEUS_MATCH": 'cluster=~"("'}, "PROMETHEUS_MATCH: '(' is not a regular expression"),
        ({"PROMETHEUS_NODE_LABEL": "a-b"}, "PROMETHEUS_NODE_LABEL: 'a-b' is not the name of a label"),
        ({"PROMETHEUS_HEADERS": '{"X": "a\\nb"}'}, "PROMETHEUS_HEADERS: header X cannot be sent"),
        ({"PROMETHEUS_NODES": '{"a": {"node": "x"}}'}, "PROMETHEUS_NODES: a: is not an object"),
        (
            {"PROMETHEUS_NODES": '{"a": {"node": "x", "libvirt": "y"}, "b": {"node": "z", "libvirt": "y"}}'},
            "PROMETHEUS_NODES: y is the libvirt of two nodes",
        ),
    ],
)
def test_settings_of_prometheus_that_contradict_are_faults(values: dict[str, str], fault: str) -> None:
    for read in (ballooning_settings, estimator_settings):
        found: list[str] = []
        try:
            read(Environment({**STUBS, **HOSTS, **PROMETHEUS, **values}))
        except SettingsError as error:
            found = list(error.faults)
        assert len(found) == (1 if fault else 0), found
        assert all(one.startswith(fault) for one in found), found


def test_aggregator_does_not_read_the_url_of_prometheus() -> None:
    together = {**STUBS, **PROMETHEUS, "INFLUXDB_URL": "http://h:8086", "INFLUXDB_TOKEN": "t", "INFLUXDB_ORG": "o"}
    settings = aggregator_settings(Environment({**together, "INFLUXDB_BUCKET": "b"}))
    assert settings.store.prometheus is None
    assert settings.store.influx is not None


def test_nodes_of_prometheus_are_found_unless_they_are_listed() -> None:
    settings = estimator_settings(Environment({**STUBS, **PROMETHEUS}))
    assert (settings.nodes, settings.nodes_are_found, settings.master) == ((), True, "")
    listed = estimator_settings(Environment({**STUBS, **PROMETHEUS, "SCHED_NODES": '["w1"]'}))
    assert (listed.nodes, listed.nodes_are_found) == (("w1",), False)


def test_secrets_of_prometheus_are_not_shown() -> None:
    env = {**PROMETHEUS, "PROMETHEUS_URL": "http://u:s3cret@h:9090", "PROMETHEUS_TOKEN": "s3cret"}
    assert "s3cret" not in repr(estimator_settings(Environment(env)))


def test_all_faults_are_reported_together() -> None:
    found = faults(AGGREG_TIMEOUT_S="soon", AGGREG_MAX_PAGE_MB="1.5", STATE_MODE="9", SCHED_STABILITY="perhaps")
    assert found == [
        "AGGREG_TIMEOUT_S: 'soon' is not a number from 0.05 to 600",
        "AGGREG_MAX_PAGE_MB: '1.5' is not a whole number from 1 to 1024",
        "STATE_MODE: '9' is not a mode such as 0644 that lets the owner read",
        "SCHED_STABILITY: 'perhaps' is not one of mean, range, always, never",
    ]


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e400", "0x10", "1_0", "4 s"])
def test_number_outside_its_limits_is_refused(text: str) -> None:
    env = Environment({"AGGREG_TIMEOUT_S": text})
    assert env.read(TIMEOUT_S) == 4.0
    assert env.faults == [f"AGGREG_TIMEOUT_S: {text!r} is not a number from 0.05 to 600"]


def test_empty_value_counts_as_unset() -> None:
    assert Environment({"AGGREG_TIMEOUT_S": ""}).read(TIMEOUT_S) == 4.0


def test_older_name_is_read_and_the_new_one_overrides_it() -> None:
    old = estimator_settings(Environment({**STUBS, "SCHED_MEMORY_PATH": "/tmp/old.sqlite"}))
    both = estimator_settings(
        Environment({**STUBS, "SCHED_MEMORY_PATH": "/tmp/old.sqlite", "SCHED_CHECKPOINT_PATH": "/tmp/new.sqlite"})
    )
    assert (str(old.checkpoint_path), str(both.checkpoint_path)) == ("/tmp/old.sqlite", "/tmp/new.sqlite")


def test_fault_under_an_older_name_names_it(tmp_path: Path) -> None:
    assert faults(SCHED_MEMORY_PATH=str(tmp_path)) == [f"SCHED_MEMORY_PATH: {tmp_path} is a folder, not a file"]


@pytest.mark.parametrize("key", ["STATE_ENDPOINT", "STORE_PATH", "SCHED_CHECKPOINT_PATH"])
def test_folder_in_place_of_a_file_is_a_fault(key: str, tmp_path: Path) -> None:
    assert f"{key}: {tmp_path} is a folder, not a file" in faults(**{key: str(tmp_path)})


def test_options_override_settings() -> None:
    env = {**STUBS, "SCHED_STRATEGY": "conformal,borg", "SCHED_RISK": "0.1", "SCHED_RISK_MEM": "0.02"}
    read = estimator_settings(Environment(env))
    assert read.strategies == ("conformal", "borg")
    assert (read.model.risk_of("cpu"), read.model.risk_of("mem")) == (0.1, 0.02)
    given = estimator_settings(Environment(env), given={"strategy": "greedy", "risk_mem": 0.3, "cpu": 80.0})
    assert given.strategies == ("greedy",)
    assert (given.model.risk_of("cpu"), given.model.risk_of("mem"), given.model.cpu) == (0.1, 0.3, 80.0)


@pytest.mark.parametrize(("key", "value"), [("SCHED_RISK", "0"), ("SCHED_RISK_CPU", "0.31"), ("SCHED_RISK_MEM", "1")])
def test_risk_that_the_strategy_does_not_support_is_a_fault_of_its_key(key: str, value: str) -> None:
    [fault] = faults(**{key: value, "SCHED_STRATEGY": "conformal"})
    assert fault == f"{key}: conformal supports target risks above 0 and up to 0.3, not {float(value):g}"
    assert faults(**{key: value, "SCHED_STRATEGY": "borg"}) == []


def test_unknown_strategy_in_the_settings_is_a_fault() -> None:
    [fault] = faults(SCHED_STRATEGY="scroogevm,nonsense")
    assert fault.startswith("SCHED_STRATEGY: 'nonsense' is none of percentile, ")


def test_dollar_signs_in_the_file_are_taken_as_they_stand(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME_OF_NOBODY", "expanded")
    (folder / ".env").write_text("INFLUXDB_TOKEN=a${HOME_OF_NOBODY}b$c\n")
    assert environment().read(SETTINGS["INFLUXDB_TOKEN"]) == "a${HOME_OF_NOBODY}b$c"


def test_misspelt_key_is_logged_whatever_its_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / ".env").write_text("AGREG_STUB_LIST='[]'\nSCHED_NODE='[]'\nOS_REGION='x'\n")
    monkeypatch.setenv("AGGREG_FETCH_DELAYS", "1")
    monkeypatch.setenv("BALOONING_STEP_MB", "1")
    monkeypatch.setenv("INFLUXDB_ADMIN_NAME", "of another program")
    with caplog.at_level(logging.WARNING):
        environment()
    assert [record.getMessage() for record in caplog.records] == [
        ".env: AGREG_STUB_LIST is not a setting; did you mean AGGREG_STUB_LIST?",
        ".env: SCHED_NODE is not a setting; did you mean SCHED_NODES?",
        "environment: AGGREG_FETCH_DELAYS is not a setting; did you mean AGGREG_FETCH_DELAY?",
        "environment: BALOONING_STEP_MB is not a setting; did you mean BALLOONING_STEP_MB?",
    ]


def test_variables_of_this_machine_are_no_misspelt_settings() -> None:
    others = [
        "HOME",
        "PATH",
        "STATE_DIRECTORY",
        "STORE",
        "INFLUX_TOKEN",
        "METRICS_PORT",
        "OS_CLOUD",
        "LIBVIRT_DEFAULT_URI",
    ]
    assert misspelt([], others) == []


def test_secrets_are_shown_nowhere() -> None:
    secrets = {key: "hush-hush" for key, setting in SETTINGS.items() if setting.secret}
    assert {"INFLUXDB_TOKEN", "PLACEMENT_TOKEN", "OS_PASSWORD"} <= set(secrets)
    values = {
        **secrets,
        "INFLUXDB_URL": "http://h",
        "PLACEMENT_PROVIDERS": '{"a": "b"}',
        "PLACEMENT_ENDPOINT": "http://h",
    }
    shown = [
        repr(read(Environment({**STUBS, **HOSTS, **values, "INFLUXDB_ORG": "o", "INFLUXDB_BUCKET": "b"})))
        for read in READERS
    ]
    shown += faults(**{**values, **dict.fromkeys(secrets, "hush-hush\x00")})
    assert "hush-hush" not in "".join(shown)
