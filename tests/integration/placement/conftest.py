"""A real OpenStack Placement for the tests of this folder, and a name that no other provider has."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.support.placement import FakeKeystone
from tests.support.servers import PlacementServer, placement_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlacementServer]:
    """One for all tests of a worker: each test has providers of its own."""
    with placement_server(tmp_path_factory.mktemp("placement")) as ours:
        ours.call("PUT", "/resource_classes/CUSTOM_LICENCE")
        yield ours


@pytest.fixture
def host() -> str:
    """A host name without a domain, which no other test has."""
    return f"c{uuid.uuid4().hex[:8]}"


@pytest.fixture
def keystone() -> Iterator[FakeKeystone]:
    """A Keystone that accepts everyone, and a nova beside it."""
    fake = FakeKeystone()
    yield fake
    fake.close()
