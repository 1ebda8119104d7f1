"""Login with a fixed token and with Keystone."""

from __future__ import annotations

import json
import logging

import pytest

from model.publishers.placement.reconciler import PlacementReconciler
from tests.support.placement import (
    CPU,
    NODE,
    FakeKeystone,
    between,
    capacity_of,
    from_environment,
)
from tests.support.servers import PlacementServer, free_port


def test_login_with_keystone_finds_placement_in_the_catalog(
    server: PlacementServer, keystone: FakeKeystone, host: str
) -> None:
    provider = server.provider(host, VCPU=CPU)
    keystone.catalog = server.url
    placement = PlacementReconciler(
        from_environment(
            PLACEMENT_PROVIDERS=json.dumps({NODE: host}),
            OS_AUTH_URL=keystone.url,
            OS_USERNAME="scroogevm",
            OS_PASSWORD="s3cr3t",
            OS_PROJECT_NAME="service",
            OS_REGION_NAME="one",
        )
    )
    for cores in (12.0, 16.0):
        assert placement.publish([capacity_of(NODE, cores, None)]).updated == (NODE,)
    assert server.inventories(provider)["VCPU"]["allocation_ratio"] == 2.0
    (login,) = keystone.logins
    assert login["auth"]["identity"]["password"]["user"] == {
        **{"name": "scroogevm", "password": "s3cr3t", "domain": {"name": "Default"}}
    }
    assert login["auth"]["scope"]["project"]["name"] == "service"


def test_expired_token_is_renewed(server: PlacementServer, keystone: FakeKeystone, host: str) -> None:
    server.provider(host, VCPU=CPU)
    keystone.tokens = ["old", "admin"]

    def hook(method: str, path: str, token: str) -> tuple[int, str] | None:
        return (401, "{}") if token == "old" else None

    with between(server, hook) as url:
        keystone.catalog = url
        placement = PlacementReconciler(
            from_environment(
                PLACEMENT_PROVIDERS=json.dumps({NODE: host}),
                OS_AUTH_TYPE="v3applicationcredential",
                OS_AUTH_URL=keystone.url,
                OS_APPLICATION_CREDENTIAL_ID="id",
                OS_APPLICATION_CREDENTIAL_SECRET="s3cr3t",
            )
        )
        assert placement.publish([capacity_of(NODE, 12.0, None)]).updated == (NODE,)
    assert [login["auth"]["identity"]["methods"] for login in keystone.logins] == [["application_credential"]] * 2


@pytest.mark.parametrize("status", [401, 500, 0])
def test_failed_keystone_login_is_logged_without_secrets(
    server: PlacementServer, keystone: FakeKeystone, status: int, event_log: pytest.LogCaptureFixture
) -> None:
    keystone.status = status
    event_log.set_level(logging.DEBUG)
    placement = PlacementReconciler(
        from_environment(
            PLACEMENT_PROVIDERS='{"a": "b", "c": "d"}',
            OS_AUTH_URL=keystone.url if status else f"http://127.0.0.1:{free_port()}/v3",
            OS_USERNAME="u",
            OS_PASSWORD="s3cr3t",
            OS_PROJECT_NAME="p",
        )
    )
    for _ in range(2):
        done = placement.publish([capacity_of("a", 12.0, None), capacity_of("c", 12.0, None)])
        assert done.failed == dict.fromkeys("ac", "login" if status else "connection")
    warnings = [record.getMessage() for record in event_log.records if record.levelno >= logging.WARNING]
    assert warnings == [f"Placement: Keystone: HTTP status {status}" if status else "Placement: Connection refused"]
    assert "s3cr3t" not in event_log.text


def test_placement_missing_in_the_catalog_is_an_error(server: PlacementServer, keystone: FakeKeystone) -> None:
    keystone.catalog = server.url
    placement = PlacementReconciler(
        from_environment(
            **{"PLACEMENT_PROVIDERS": '{"a": "b"}', "OS_AUTH_URL": keystone.url, "OS_REGION_NAME": "elsewhere"},
            **{"OS_USERNAME": "u", "OS_PASSWORD": "s3cr3t", "OS_PROJECT_NAME": "p"},
        )
    )
    assert placement.publish([capacity_of("a", 12.0, None)]).failed == {"a": "login"}
    assert "elsewhere" in placement.counts().last_error
