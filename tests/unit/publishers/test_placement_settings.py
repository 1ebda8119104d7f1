"""Settings of OpenStack Placement."""

from __future__ import annotations

import io
import re

import pytest

from model.common.environment import Environment
from model.publishers.settings import Keystone, Skip, placement_settings
from tests.conftest import ROOT
from tests.support.placement import from_environment


def test_placement_is_off_by_default() -> None:
    environment = Environment({"OS_AUTH_TYPE": "nonsense", "PLACEMENT_TIMEOUT_S": "x"})
    assert placement_settings(environment, 1800.0) is None
    assert not environment.faults


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({}, ["OS_AUTH_URL", "OS_PASSWORD", "OS_PROJECT_NAME", "OS_USERNAME"]),
        ({"PLACEMENT_TOKEN": "t"}, ["PLACEMENT_TOKEN"]),
        ({"PLACEMENT_TOKEN": "t", "PLACEMENT_ENDPOINT": "http://u:p@h"}, ["PLACEMENT_ENDPOINT"]),
        ({"OS_AUTH_TYPE": "kerberos"}, ["OS_AUTH_TYPE"]),
        (
            {"OS_AUTH_TYPE": "v3applicationcredential", "OS_AUTH_URL": "http://h"},
            ["OS_APPLICATION_CREDENTIAL_ID", "OS_APPLICATION_CREDENTIAL_SECRET"],
        ),
        (
            {
                **{"PLACEMENT_TOKEN": "t", "PLACEMENT_ENDPOINT": "http://h", "PLACEMENT_PROVIDERS": '["x"]'},
                **{"PLACEMENT_MAX_RATIO": "0.5", "PLACEMENT_TIMEOUT_S": "0", "PLACEMENT_ALLOW_BELOW_ONE": "2"},
                **{"PLACEMENT_ROUND_TIMEOUT_S": "x", "OS_CACERT": "/nowhere"},
            },
            [
                *("OS_CACERT", "PLACEMENT_ALLOW_BELOW_ONE", "PLACEMENT_MAX_RATIO", "PLACEMENT_PROVIDERS"),
                *("PLACEMENT_ROUND_TIMEOUT_S", "PLACEMENT_TIMEOUT_S"),
            ],
        ),
    ],
)
def test_every_fault_is_reported_with_its_key(values: dict[str, str], keys: list[str]) -> None:
    environment = Environment({"PLACEMENT_PROVIDERS": '{"a": "b"}', **values})
    placement_settings(environment, 1800.0)
    assert sorted(fault.partition(":")[0] for fault in environment.faults) == keys


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "is not an object"),
        ('{"a": ""}', "a: its provider"),
        ('{"a": 1}', "a: its provider"),
        ('{"": "x"}', "no node"),
        ('{"a": "x", "b": "x"}', "a and b have the same provider"),
        ('{"http://u:p@h": "x", "http://h": "y"}', "node http://h is listed twice"),
    ],
)
def test_invalid_mapping_is_reported(text: str, message: str) -> None:
    environment = Environment({"PLACEMENT_PROVIDERS": text, "PLACEMENT_TOKEN": "t", "PLACEMENT_ENDPOINT": "http://h"})
    placement_settings(environment, 1800.0)
    (fault,) = environment.faults
    assert message in fault


def test_node_has_no_password_and_representation_has_no_secret() -> None:
    read = from_environment(
        PLACEMENT_PROVIDERS='{"http://u:s3cr3t@h/metrics": "x"}',
        **{"OS_AUTH_URL": "http://h", "OS_USERNAME": "u", "OS_PASSWORD": "s3cr3t", "OS_PROJECT_NAME": "p"},
    )
    assert read.providers == {"http://h/metrics": "x"}
    assert isinstance(read.login, Keystone)
    assert read.login.options["password"] == "s3cr3t"
    assert "s3cr3t" not in repr(read)


def test_dotenv_shows_the_defaults_of_placement() -> None:
    from dotenv import dotenv_values

    text = re.sub(r"^#(?=[A-Z0-9_]+=)", "", (ROOT / "dotenv").read_text(), flags=re.M)
    written = dotenv_values(stream=io.StringIO(text))
    given = {
        **{"PLACEMENT_PROVIDERS": '{"a": "b"}', "OS_AUTH_URL": "http://h", "OS_USERNAME": "u"},
        **{"OS_PASSWORD": "p", "OS_PROJECT_NAME": "p"},
    }
    defaults = {key: value or "" for key, value in written.items() if key.startswith(("OS_", "PLACEMENT_"))}
    assert from_environment(**{**defaults, **given}) == from_environment(**given)


@pytest.mark.parametrize(
    ("text", "providers"),
    [
        ("auto", {"*": "auto"}),
        ('{"*": "auto", "http://h": "x"}', {"*": "auto", "http://h": "x"}),
        ('{"a": "auto", "b": "auto"}', {"a": "auto", "b": "auto"}),
    ],
)
def test_providers_may_be_found_by_host_name(text: str, providers: dict[str, str]) -> None:
    given = {"PLACEMENT_TOKEN": "t", "PLACEMENT_ENDPOINT": "http://h"}
    assert from_environment(PLACEMENT_PROVIDERS=text, **given).providers == providers


@pytest.mark.parametrize("text", ['{"*": "x"}', "automatic", "{", '"auto"'])
def test_only_auto_stands_for_all_other_nodes(text: str) -> None:
    environment = Environment({"PLACEMENT_PROVIDERS": text, "PLACEMENT_TOKEN": "t", "PLACEMENT_ENDPOINT": "http://h"})
    placement_settings(environment, 1800.0)
    (fault,) = environment.faults
    assert fault.startswith("PLACEMENT_PROVIDERS: ")


def test_skips_are_traits_aggregates_and_metadata() -> None:
    aggregate = "0c1d9fcd-1e63-4a3c-9a5c-3a0a53d5c2f4"
    keystone = {"OS_AUTH_URL": "http://h", "OS_USERNAME": "u", "OS_PASSWORD": "p", "OS_PROJECT_NAME": "p"}
    read = from_environment(
        PLACEMENT_PROVIDERS="auto", PLACEMENT_SKIP=f"CUSTOM_A, {aggregate.upper()},pinned = true", **keystone
    )
    assert read.skips == (Skip(trait="CUSTOM_A"), Skip(aggregate=aggregate), Skip(key="pinned", value="true"))
    assert [str(skip) for skip in read.skips] == ["CUSTOM_A", aggregate, "pinned=true"]


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"PLACEMENT_SKIP": "custom-a"}, "PLACEMENT_SKIP: 'custom-a' is neither a trait"),
        ({"PLACEMENT_SKIP": "CUSTOM_A,,B"}, "PLACEMENT_SKIP: '' is neither a trait"),
        ({"PLACEMENT_SKIP": "pinned="}, "PLACEMENT_SKIP: 'pinned=' is neither a trait"),
        ({"PLACEMENT_SKIP": "pinned=true"}, "PLACEMENT_SKIP: metadata of host aggregates is in nova"),
        ({"PLACEMENT_POLL_S": "0"}, "PLACEMENT_POLL_S: "),
        ({"PLACEMENT_STATE_PATH": "/"}, "PLACEMENT_STATE_PATH: / is a folder, not a file"),
    ],
)
def test_faults_of_the_newer_settings_name_their_key(values: dict[str, str], fault: str) -> None:
    login = {"PLACEMENT_PROVIDERS": "auto", "PLACEMENT_TOKEN": "t", "PLACEMENT_ENDPOINT": "http://h"}
    environment = Environment({**login, **values})
    placement_settings(environment, 1800.0)
    (found,) = environment.faults
    assert found.startswith(fault)


@pytest.mark.parametrize(("slice_s", "round_s"), [(1800.0, 450.0), (60.0, 30.0), (86400.0, 21600.0)])
def test_limit_of_a_round_follows_the_slice(slice_s: float, round_s: float) -> None:
    login = {"PLACEMENT_PROVIDERS": "auto", "PLACEMENT_TOKEN": "t", "PLACEMENT_ENDPOINT": "http://h"}
    read = placement_settings(Environment(login), slice_s)
    assert read is not None
    assert read.round_timeout_s == round_s
    own = placement_settings(Environment({**login, "PLACEMENT_ROUND_TIMEOUT_S": "7"}), slice_s)
    assert own is not None
    assert own.round_timeout_s == 7.0
