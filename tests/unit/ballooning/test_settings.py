"""Settings of the ballooning daemon."""

from __future__ import annotations

import json

import pytest

from model.ballooning.settings import ballooning_settings
from model.common.environment import Environment, SettingsError

NODE = "http://w1:9100/metrics"
HOSTS = {"LIBVIRT_NODES": json.dumps({NODE: "test:///default"})}


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"LIBVIRT_NODES": ""}, ["LIBVIRT_NODES: names no node"]),
        ({"LIBVIRT_NODES": "[]"}, ["LIBVIRT_NODES: is not an object"]),
        ({"LIBVIRT_NODES": '{"a": "x"}'}, ["LIBVIRT_NODES: a: has no libvirt URI"]),
        ({"LIBVIRT_NODES": '{"a": "t:///d", "b": "t:///d"}'}, ["LIBVIRT_NODES: b: has the URI of another node"]),
        (
            {"BALLOONING_HEADROOM_MB": "1", "BALLOONING_SESSION_S": "no"},
            ["BALLOONING_HEADROOM_MB: '1'", "BALLOONING_SESSION_S: 'no'"],
        ),
        ({"BALLOONING_EXCLUDE": '"db"'}, ["BALLOONING_EXCLUDE: is not a list of patterns"]),
    ],
)
def test_all_faults_of_the_settings_are_raised_together(changes: dict[str, str], faults: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        ballooning_settings(Environment({**HOSTS, **changes}))
    assert len(refused.value.faults) == len(faults)
    for fault, beginning in zip(refused.value.faults, faults, strict=True):
        assert fault.startswith(beginning)


def test_minutes_of_old_files_are_accepted() -> None:
    old = {**HOSTS, "BALLOONING_SCOPE_MN": "15"}
    assert ballooning_settings(Environment(old)).rules.scope_s == 900
    assert ballooning_settings(Environment({**old, "BALLOONING_SCOPE_S": "60"})).rules.scope_s == 60
