"""The HTTP client of OpenStack Placement."""

from __future__ import annotations

import errno
import logging
import uuid
from typing import Any

import requests.exceptions
import urllib3.exceptions
from keystoneauth1 import exceptions, loading, token_endpoint
from keystoneauth1.adapter import Adapter
from keystoneauth1.session import Session

from ...common.errors import causes, system_words
from ..settings import PlacementSettings, Token

#: The lowest that suffices: 1.23 says which kind of conflict it is, and up to 1.25 a whole inventory is refused when
#: any class of it has all of its total reserved. Placement has it since Rocky, 2018.
_MICROVERSION = "1.26"

#: Nobody has it: whoever may list providers and speaks the microversion learns that.
NO_PROVIDER = "00000000-0000-0000-0000-000000000000"


class PlacementError(Exception):
    """A provider that can't be brought up to date.

    Attributes
    ----------
    reason : str
        One of few words, fit for the label of a metric.
    """

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


class ProviderMissing(PlacementError):
    """There is no such provider."""


class ProviderConflict(PlacementError):
    """Somebody wrote to the provider since it was read."""


def open_adapter(settings: PlacementSettings) -> Adapter:
    """An HTTP adapter that logs in as the settings say."""
    # It warns of a Keystone that is away whenever it is asked; we say that ourselves, once.
    logging.getLogger("keystoneauth").setLevel(logging.ERROR)
    login = settings.login
    common: dict[str, Any] = {
        "service_type": "placement",
        "default_microversion": _MICROVERSION,
        # A deadlock in Placement's database is a status of 500, and the next try goes well. A write that was done all
        # the same is a conflict then.
        "status_code_retries": 3,
        "retriable_status_codes": [500, 502, 503, 504],
        "status_code_retry_delay": 0.2,
    }
    session = Session(
        timeout=settings.timeout_s,
        verify=settings.ca_file or True,
        # A token is for the server that is named, not for where that may point.
        redirect=False,
        user_agent="scroogevm",
    )
    if isinstance(login, Token):
        return Adapter(session, auth=token_endpoint.Token(login.endpoint, login.token), **common)
    try:
        auth: Any = loading.get_plugin_loader(login.kind).load_from_options(**login.options)
    except exceptions.ClientException as error:
        raise PlacementError("login", one_line(str(error))) from None
    return Adapter(
        session,
        interface=login.interface,
        region_name=login.region or None,
        endpoint_override=login.endpoint or None,
        auth=auth,
        **common,
    )


def as_uuid(text: str) -> str:
    """The text as Placement writes a UUID; empty if it is none."""
    try:
        found = str(uuid.UUID(text))
    except ValueError:
        return ""
    return found if found == text.lower() else ""


def refusal_error(status: int, body: Any) -> PlacementError:
    """The error that a status other than 200 stands for."""
    errors = body.get("errors") if isinstance(body, dict) else None
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    # The first paragraph says what the status says already.
    said = one_line(str(first.get("detail", "")).strip().rpartition("\n\n")[2])
    words = f"HTTP status {status}: {said}" if said else f"HTTP status {status}"
    if status == 409 and first.get("code") == "placement.concurrent_update":
        return ProviderConflict("conflict", words)
    if status == 404:
        return ProviderMissing("missing", words)
    reasons = {401: "login", 403: "forbidden"}
    return PlacementError(reasons.get(status, "server" if status >= 500 else "refused"), words)


def connection_error(error: BaseException) -> PlacementError:
    """What is at the bottom of an error; not its URL."""
    # The system's own words come first: urllib3 counts a refused connection among those that took too long.
    for number, words in system_words(error):
        if number != errno.ETIMEDOUT:
            return PlacementError("connection", one_line(words))
    silent = (exceptions.ConnectTimeout, requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    if any(isinstance(cause, silent) for cause in causes(error)):
        return PlacementError("timeout", "no answer in time")
    return PlacementError("connection", f"no connection ({type(error).__name__})")


def one_line(text: str) -> str:
    """At most 200 printable characters."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))[:200]
