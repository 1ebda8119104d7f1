"""HTTP client of OpenStack Placement: login, requests, errors."""

from __future__ import annotations

import errno
import logging
import uuid
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import requests.exceptions
import urllib3.exceptions
from keystoneauth1 import exceptions, loading, token_endpoint
from keystoneauth1.adapter import Adapter
from keystoneauth1.session import Session

from ...common.errors import causes, system_words
from ...common.text import printable
from ..settings import PlacementSettings, Token

#: The lowest that suffices: 1.23 adds codes that distinguish conflicts, and before 1.26 a write is refused when any
#: resource class has all of its total reserved. Placement supports it since Rocky, 2018.
_MICROVERSION = "1.26"

_PLACEMENT: dict[str, Any] = {"service_type": "placement", "default_microversion": _MICROVERSION}

#: 2.41 adds the UUIDs of aggregates, which Placement has too; since Ocata, 2017.
_NOVA: dict[str, Any] = {"service_type": "compute", "default_microversion": "2.41"}

#: A UUID that no provider has: a request for it shows whether login and microversion are accepted.
_NO_PROVIDER = "00000000-0000-0000-0000-000000000000"

_LONGEST_MESSAGE = 200


class PlacementError(Exception):
    """A request that failed, or a provider that cannot be updated.

    Attributes
    ----------
    reason : str
        A label for metrics, see :class:`~.reconciler.PlacementCounts`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ProviderMissing(PlacementError):
    """The resource provider does not exist."""


class ProviderConflict(PlacementError):
    """The provider has changed since it was read."""


class _Provider(NamedTuple):
    name: str
    uuid: str
    is_root: bool


class PlacementClient:
    """Reads and writes inventories of resource providers; usable from several threads.

    Parameters
    ----------
    settings : PlacementSettings

    Raises
    ------
    PlacementError
        When keystoneauth1 does not accept the login options.
    """

    def __init__(self, settings: PlacementSettings) -> None:
        self._adapter, self._nova = _adapters(settings)

    def check_access(self) -> None:
        """Send one request that shows whether Placement is reachable and accepts login and microversion.

        Raises
        ------
        PlacementError
        """
        self._providers({"uuid": _NO_PROVIDER})

    def find_provider(self, name: str) -> str:
        """The UUID of the provider with a name.

        Raises
        ------
        ProviderMissing
        PlacementError
        """
        providers = self._providers({"name": name})
        if not providers:
            raise ProviderMissing("missing", f"no resource provider is named {name}")
        return providers[0].uuid

    def root_providers(self) -> dict[str, str]:
        """The UUIDs of all providers that are not part of another one, by name.

        Raises
        ------
        PlacementError
        """
        return {provider.name: provider.uuid for provider in self._providers({}) if provider.is_root}

    def providers_with_trait(self, trait: str) -> frozenset[str]:
        """The UUIDs of the providers with a trait; none when there is no such trait.

        Raises
        ------
        PlacementError
        """
        try:
            self._request("GET", f"/traits/{trait}")
        except ProviderMissing:
            return frozenset()
        return frozenset(provider.uuid for provider in self._providers({"required": trait}))

    def providers_of_aggregates(self, aggregates: Collection[str]) -> frozenset[str]:
        """The UUIDs of the providers in any of some aggregates.

        Parameters
        ----------
        aggregates : collection of str
            Their UUIDs.

        Raises
        ------
        PlacementError
        """
        if not aggregates:
            return frozenset()
        members = self._providers({"member_of": f"in:{','.join(sorted(aggregates))}"})
        return frozenset(provider.uuid for provider in members)

    def host_aggregates(self, key: str, value: str) -> frozenset[str]:
        """The UUIDs of nova's host aggregates whose metadata has a value.

        Raises
        ------
        PlacementError
            Also with a fixed token, which has no catalogue to find nova in.
        """
        if self._nova is None:
            raise PlacementError("login", "metadata of host aggregates is in nova, which requires Keystone")
        body = self._request("GET", "/os-aggregates", adapter=self._nova)
        try:
            matching = [one for one in body["aggregates"] if one["metadata"].get(key) == value]
            return frozenset(str(uuid.UUID(one["uuid"])) for one in matching)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise PlacementError("answer", "invalid list of host aggregates") from None

    def inventories(self, provider: str) -> dict[str, Any]:
        """The provider's generation and inventories, as :meth:`put_inventories` takes them.

        Raises
        ------
        ProviderMissing
        PlacementError
        """
        body = self._request("GET", f"/resource_providers/{provider}/inventories")
        if not _is_inventories(body):
            raise PlacementError("answer", "invalid inventories")
        return body

    def usages(self, provider: str) -> dict[str, Any]:
        """The provider's generation, and under ``usages`` what is allocated of each resource class.

        Raises
        ------
        ProviderMissing
        PlacementError
        """
        body = self._request("GET", f"/resource_providers/{provider}/usages")
        if not _is_usages(body):
            raise PlacementError("answer", "invalid usages")
        return body

    def put_inventories(self, provider: str, body: dict[str, Any]) -> dict[str, Any]:
        """Replace all inventories of a provider; the new generation and inventories.

        Raises
        ------
        ProviderConflict
            When the provider's generation is no longer that of the body.
        ProviderMissing
        PlacementError
        """
        written = self._request("PUT", f"/resource_providers/{provider}/inventories", json=body)
        if not _is_inventories(written):
            raise PlacementError("answer", "invalid inventories")
        return written

    def _providers(self, params: dict[str, str]) -> list[_Provider]:
        providers = self._request("GET", "/resource_providers", params=params).get("resource_providers")
        if not isinstance(providers, list):
            raise PlacementError("answer", "the response is not one of OpenStack Placement")
        try:
            return [_Provider(str(one["name"]), str(uuid.UUID(one["uuid"])), _is_root(one)) for one in providers]
        except (KeyError, TypeError, AttributeError, ValueError):
            raise PlacementError("answer", "invalid list of resource providers") from None

    def _request(self, method: str, path: str, adapter: Adapter | None = None, **options: Any) -> dict[str, Any]:
        try:
            response = (adapter or self._adapter).request(path, method, raise_exc=False, **options)
        except exceptions.HttpError as error:
            # With raise_exc=False only Keystone's statuses are raised.
            raise PlacementError("login", f"Keystone: HTTP status {error.http_status}") from None
        except (exceptions.ConnectionError, requests.exceptions.RequestException, OSError) as error:
            raise _connection_error(error) from None
        except exceptions.ClientException as error:
            raise PlacementError("login", f"Keystone: {_one_line(str(error)) or type(error).__name__}") from None
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.status_code not in (200, 204):
            raise _status_error(response.status_code, body)
        if response.status_code == 204:
            return {}
        if not isinstance(body, dict):
            raise PlacementError("answer", "the response is not one of OpenStack Placement")
        return body


def as_uuid(text: str) -> str:
    """The text in Placement's notation of a UUID; empty if it is none."""
    try:
        canonical = str(uuid.UUID(text))
    except ValueError:
        return ""
    return canonical if canonical == text.lower() else ""


def _is_root(provider: Mapping[str, Any]) -> bool:
    return provider.get("parent_provider_uuid") is None


def _adapters(settings: PlacementSettings) -> tuple[Adapter, Adapter | None]:
    """HTTP adapters of Placement and, where there is a catalogue, of nova, with the login of the settings."""
    # It warns at every request while Keystone is unreachable; the reconciler logs that once.
    logging.getLogger("keystoneauth").setLevel(logging.ERROR)
    login = settings.login
    common: dict[str, Any] = {
        # A deadlock in Placement's database is a status 500, and the next attempt succeeds. If the write was done
        # nevertheless, the next attempt is a conflict.
        "status_code_retries": 3,
        "retriable_status_codes": [500, 502, 503, 504],
        "status_code_retry_delay": 0.2,
    }
    session = Session(
        timeout=settings.timeout_s,
        verify=settings.ca_file or True,
        # The token is meant for the configured server only.
        redirect=False,
        user_agent="scroogevm",
    )
    if isinstance(login, Token):
        return Adapter(session, auth=token_endpoint.Token(login.endpoint, login.token), **_PLACEMENT, **common), None
    try:
        auth: Any = loading.get_plugin_loader(login.kind).load_from_options(**login.options)
    except exceptions.ClientException as error:
        raise PlacementError("login", _one_line(str(error))) from None
    common |= {"auth": auth, "interface": login.interface, "region_name": login.region or None}
    placement = Adapter(session, endpoint_override=login.endpoint or None, **_PLACEMENT, **common)
    return placement, Adapter(session, **_NOVA, **common)


def _is_inventories(body: dict[str, Any]) -> bool:
    try:
        return isinstance(body["resource_provider_generation"], int) and all(
            isinstance(record[name], (int, float))
            for record in body["inventories"].values()
            for name in ("total", "reserved", "allocation_ratio")
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _is_usages(body: dict[str, Any]) -> bool:
    try:
        return isinstance(body["resource_provider_generation"], int) and all(
            isinstance(amount, (int, float)) and amount >= 0 for amount in body["usages"].values()
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _status_error(status: int, body: Any) -> PlacementError:
    """The error for a status other than 200."""
    errors = body.get("errors") if isinstance(body, dict) else None
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    # The first paragraph only repeats the status.
    detail = _one_line(str(first.get("detail", "")).strip().rpartition("\n\n")[2])
    message = f"HTTP status {status}: {detail}" if detail else f"HTTP status {status}"
    if status == 409 and first.get("code") == "placement.concurrent_update":
        return ProviderConflict("conflict", message)
    if status == 404:
        return ProviderMissing("missing", message)
    reasons = {401: "login", 403: "forbidden"}
    return PlacementError(reasons.get(status, "server" if status >= 500 else "refused"), message)


def _connection_error(error: BaseException) -> PlacementError:
    """The innermost cause of an error, without the URL."""
    # System errors come first: urllib3 classes a refused connection as a timeout.
    for number, message in system_words(error):
        if number != errno.ETIMEDOUT:
            return PlacementError("connection", _one_line(message))
    timeouts = (exceptions.ConnectTimeout, requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    if any(isinstance(cause, timeouts) for cause in causes(error)):
        return PlacementError("timeout", "no response in time")
    return PlacementError("connection", f"no connection ({type(error).__name__})")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))[:_LONGEST_MESSAGE]
