"""Settings of the publishers: status file and OpenStack Placement."""

from __future__ import annotations

import grp
import json
import pwd
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.environment import Environment
from ..common.settings import InvalidValue, Section, Setting, ascii_token
from ..common.targets import http_url, is_url, without_password
from ..store.settings import status_path

#: Largest user or group ID; the next one is -1, which chown takes for "unchanged".
_LARGEST_ID = 2**32 - 2

#: The shortest time of a round of updates that is not set.
_LEAST_ROUND_S = 30.0

_PASSWORD_NEEDS = ("username", "password", "project_name", "user_domain_name", "project_domain_name")

#: Options of each authentication plugin beside the URL of Keystone.
_KEYSTONE_NEEDS = {
    "password": _PASSWORD_NEEDS,
    "v3password": _PASSWORD_NEEDS,
    "v3applicationcredential": ("application_credential_id", "application_credential_secret"),
}


#: A provider that is found by the host name of the node, and the node that stands for all that are not listed.
AUTO = "auto"
ALL_NODES = "*"


def parse_provider_text(text: str) -> dict[str, str]:
    """Parse ``PLACEMENT_PROVIDERS``: ``auto``, or a JSON object of nodes and resource providers.

    Raises
    ------
    InvalidValue
        Names the node.
    """
    if text.strip() == AUTO:
        return {ALL_NODES: AUTO}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidValue(f"is neither {AUTO} nor JSON") from None
    try:
        return parse_providers(value)
    except ValueError as error:
        raise InvalidValue(str(error)) from None


def parse_providers(value: Any) -> dict[str, str]:
    """Check the decoded value of ``PLACEMENT_PROVIDERS``: node to resource provider.

    Raises
    ------
    ValueError
        Names the node.
    """
    if not isinstance(value, dict) or not value:
        raise ValueError("is not an object of node URLs and their resource providers")
    if value.get(ALL_NODES, AUTO) != AUTO:
        raise ValueError(f"{ALL_NODES}: only {AUTO} can stand for all other nodes")
    providers: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name, provider in value.items():
        node = without_password(name) if is_url(name) else name
        if not node or not node.isprintable():
            raise ValueError("an entry has no node")
        if not isinstance(provider, str) or not provider.strip() or not provider.isprintable():
            raise ValueError(f"{node}: its provider is neither a UUID nor a name")
        if node in providers:
            raise ValueError(f"node {node} is listed twice")
        if provider != AUTO and (owner := owners.setdefault(provider, node)) != node:
            raise ValueError(f"{owner} and {node} have the same provider")
        providers[node] = provider
    return providers


@dataclass(frozen=True, slots=True)
class Skip:
    """Providers that are left alone.

    Attributes
    ----------
    trait, aggregate : str
        Name of a trait; UUID of an aggregate; empty for none.
    key, value : str
        Metadata of a host aggregate; empty for none.
    """

    trait: str = ""
    aggregate: str = ""
    key: str = ""
    value: str = ""

    def __str__(self) -> str:
        return self.trait or self.aggregate or f"{self.key}={self.value}"


def parse_skips(text: str) -> tuple[Skip, ...]:
    """Parse ``PLACEMENT_SKIP``.

    Raises
    ------
    InvalidValue
    """
    return tuple(_skip(part.strip()) for part in text.split(","))


def _skip(text: str) -> Skip:
    key, equals, value = (part.strip() for part in text.partition("="))
    if equals and key and value:
        return Skip(key=key, value=value)
    if re.fullmatch(r"[A-Z0-9_]+", text):
        return Skip(trait=text)
    try:
        return Skip(aggregate=str(uuid.UUID(text)))
    except ValueError:
        raise InvalidValue(f"{text!r} is neither a trait, nor the UUID of an aggregate, nor KEY=VALUE") from None


def parse_mode(text: str) -> int:
    """Parse octal permissions.

    Raises
    ------
    InvalidValue
    """
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0o400 <= mode <= 0o777 or not mode & 0o400:
        raise InvalidValue(f"{text!r} is not a mode such as 0644 that lets the owner read")
    return mode


def parse_owner(text: str) -> tuple[int, int]:
    """Parse ``USER:GROUP``, either of which may be missing, to IDs; -1 leaves one unchanged.

    Raises
    ------
    InvalidValue
    """
    user, _, group = text.partition(":")
    uid = gid = -1
    try:
        if user:
            uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
        if group:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except (KeyError, ValueError) as error:
        raise InvalidValue(str(error.args[0])) from None
    if max(uid, gid) > _LARGEST_ID:
        raise InvalidValue(f"an ID is larger than {_LARGEST_ID}")
    return uid, gid


def _url_without_login(text: str) -> str:
    if without_password(http_url(text)) != text:
        raise InvalidValue("contains a user or a password, which is not accepted")
    return text


def _existing_file(text: str) -> str:
    if not Path(text).is_file():
        raise InvalidValue("is not a file")
    return text


_STATUS = Section("Published status file (scroogevm.py)")
STATE_MODE = _STATUS.value("STATE_MODE", 0o644, parse_mode, "Permissions of the status file.", shown="0644")
STATE_OWNER = _STATUS.value(
    "STATE_OWNER",
    (-1, -1),
    parse_owner,
    "Owner of the status file, USER:GROUP. Either part may be missing.",
)

_PLACEMENT = Section("OpenStack Placement (scroogevm.py)")
PROVIDERS: Setting[dict[str, str]] = _PLACEMENT.value(
    "PLACEMENT_PROVIDERS",
    {},
    parse_provider_text,
    """auto finds the resource provider of each node by the host in its URL: worker1.example.org, or worker1. A JSON
object of nodes and the UUID or the name of their provider, or auto, lists nodes; "*": "auto" stands for all that it
does not list. Without this setting nothing is published to Placement.""",
    example="""'{"*": "auto", "http://10.0.0.7:9100/metrics": "worker7.example.org"}'""",
)
SKIP: Setting[tuple[Skip, ...]] = _PLACEMENT.value(
    "PLACEMENT_SKIP",
    (),
    parse_skips,
    """Providers that are left alone, separated by commas: a trait such as CUSTOM_NO_OVERCOMMIT, the UUID of an
aggregate, or KEY=VALUE, the metadata of one of nova's host aggregates, which requires Keystone.""",
)
PLACEMENT_STATE_PATH = _PLACEMENT.text(
    "PLACEMENT_STATE_PATH",
    "",
    "File of the ratios that were written last, by which other writers are noticed. The default is beside "
    "STATE_ENDPOINT.",
    shown="/var/lib/scroogevm/placement.json",
)
POLL_S = _PLACEMENT.number(
    "PLACEMENT_POLL_S",
    60.0,
    1,
    86400,
    "Seconds, on average, between two looks at what is allocated on a provider: when VMs are deleted within a slice, "
    "the ratio is lowered, so that what they leave is not sold before their absence was measured.",
)
ENDPOINT = _PLACEMENT.text(
    "PLACEMENT_ENDPOINT",
    "",
    "URL of Placement, instead of the one in Keystone's catalogue. Required with PLACEMENT_TOKEN.",
    parse=_url_without_login,
)
PLACEMENT_TOKEN = _PLACEMENT.text(
    "PLACEMENT_TOKEN",
    "",
    "A fixed token, never renewed. Without it Keystone issues tokens for the credentials in OS_*, the names that "
    "OpenStack's own clients read.",
    parse=ascii_token,
    secret=True,
)
AUTH_TYPE = _PLACEMENT.choice(
    "OS_AUTH_TYPE",
    "password",
    tuple(_KEYSTONE_NEEDS),
    "Authentication plugin. v3applicationcredential takes the two OS_APPLICATION_CREDENTIAL_* settings instead of user "
    "and project.",
)
_KEYSTONE = {
    "auth_url": _PLACEMENT.text("OS_AUTH_URL", "", "URL of Keystone.", parse=_url_without_login),
    "username": _PLACEMENT.text("OS_USERNAME", "", "User in Keystone."),
    "password": _PLACEMENT.text("OS_PASSWORD", "", "Password of that user.", secret=True),
    "project_name": _PLACEMENT.text("OS_PROJECT_NAME", "", "Project in Keystone."),
    "user_domain_name": _PLACEMENT.text("OS_USER_DOMAIN_NAME", "Default", "Domain of the user."),
    "project_domain_name": _PLACEMENT.text("OS_PROJECT_DOMAIN_NAME", "Default", "Domain of the project."),
    "application_credential_id": _PLACEMENT.text(
        "OS_APPLICATION_CREDENTIAL_ID", "", "ID of an application credential."
    ),
    "application_credential_secret": _PLACEMENT.text(
        "OS_APPLICATION_CREDENTIAL_SECRET", "", "Secret of that application credential.", secret=True
    ),
}
REGION_NAME = _PLACEMENT.text("OS_REGION_NAME", "", "Region of Placement. Empty takes any.")
INTERFACE = _PLACEMENT.text("OS_INTERFACE", "public", "Interface of Placement in the catalogue.")
CACERT = _PLACEMENT.text("OS_CACERT", "", "File of trusted certificates.", parse=_existing_file)
TIMEOUT_S = _PLACEMENT.number(
    "PLACEMENT_TIMEOUT_S", 5.0, 0.1, 600, "Seconds without data after which a request counts as failed."
)
ROUND_TIMEOUT_S = _PLACEMENT.number(
    "PLACEMENT_ROUND_TIMEOUT_S",
    0.0,
    0.1,
    3600,
    "Seconds that one round of updates may take. Nodes that are left go first in the next round, which follows at "
    "once. The default is a quarter of a slice, at least 30.",
    shown="450",
)
ALLOW_BELOW_ONE = _PLACEMENT.whole(
    "PLACEMENT_ALLOW_BELOW_ONE",
    0,
    0,
    1,
    "1 lets a ratio fall below 1.0, so that less than the node is sold.",
)
MAX_RATIO = _PLACEMENT.number(
    # 99 is the largest ratio with four decimals that a FLOAT of MySQL returns unchanged.
    "PLACEMENT_MAX_RATIO",
    16.0,
    1.0,
    99.0,
    "Largest allocation ratio that is published.",
)


@dataclass(frozen=True, slots=True)
class Token:
    """A fixed token, never renewed."""

    endpoint: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Keystone:
    """Credentials for Keystone, which issues tokens and holds the service catalogue.

    Attributes
    ----------
    kind : str
        Name of keystoneauth1's plugin.
    options : mapping of str to str
        Options of the plugin, secrets among them.
    region : str
        Empty for any.
    interface : str
    endpoint : str
        URL of Placement; empty takes the one in the catalogue.
    """

    kind: str
    options: Mapping[str, str] = field(repr=False)
    region: str
    interface: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """Providers whose allocation ratios are kept, and how Placement is reached.

    Attributes
    ----------
    providers : mapping of str to str
        Node to the UUID or the name of its resource provider.
        ``*`` stands for all other nodes; ``auto`` for the provider with the host name of the node.
    login : Token or Keystone
    ca_file : str
        Trusted certificates; empty takes those of requests.
    timeout_s, round_timeout_s : float
        Of one request without data; of one round of updates.
    least_ratio, most_ratio : float
    skips : tuple of Skip
    poll_s : float
        Average time between two looks at a provider.
    state_path : Path or None
        File of the ratios that were written last; None keeps them in memory.
    """

    providers: Mapping[str, str]
    login: Token | Keystone
    ca_file: str
    timeout_s: float
    round_timeout_s: float
    least_ratio: float
    most_ratio: float
    skips: tuple[Skip, ...] = ()
    poll_s: float = 60.0
    state_path: Path | None = None


@dataclass(frozen=True, slots=True)
class StatusFileSettings:
    """The file that a scheduler reads.

    Attributes
    ----------
    path : Path
    mode : int
        Its permissions.
    uid, gid : int
        Its owner; -1 leaves it unchanged.
    """

    path: Path
    mode: int
    uid: int
    gid: int


def status_file_settings(env: Environment) -> StatusFileSettings:
    """Read the settings of the status file."""
    uid, gid = env.read(STATE_OWNER)
    return StatusFileSettings(status_path(env), env.read(STATE_MODE), uid, gid)


def placement_settings(env: Environment, slice_s: float) -> PlacementSettings | None:
    """Read the settings of Placement; None when no node is mapped to a provider.

    Parameters
    ----------
    env : Environment
    slice_s : float
        Length of a slice.
    """
    providers: dict[str, str] = env.read(PROVIDERS)
    if not env.is_set(PROVIDERS):
        return None
    login, skips = _login(env), env.read(SKIP)
    if isinstance(login, Token) and any(skip.key for skip in skips):
        env.fault(SKIP, "metadata of host aggregates is in nova, which requires Keystone and no PLACEMENT_TOKEN")
    state_path = Path(env.read(PLACEMENT_STATE_PATH, str(status_path(env).parent / "placement.json")))
    if state_path.is_dir():
        env.fault(PLACEMENT_STATE_PATH, f"{state_path} is a folder, not a file")
    return PlacementSettings(
        providers=providers,
        login=login,
        ca_file=env.read(CACERT),
        timeout_s=env.read(TIMEOUT_S),
        round_timeout_s=env.read(ROUND_TIMEOUT_S) or max(_LEAST_ROUND_S, slice_s / 4),
        # Not 0: nova takes an allocation ratio of 0 for "unset".
        least_ratio=0.0001 if env.read(ALLOW_BELOW_ONE) else 1.0,
        most_ratio=env.read(MAX_RATIO),
        skips=skips,
        poll_s=env.read(POLL_S),
        state_path=state_path,
    )


def _login(env: Environment) -> Token | Keystone:
    endpoint = env.read(ENDPOINT)
    if env.is_set(PLACEMENT_TOKEN):
        if not endpoint and not env.is_faulty(ENDPOINT):
            env.fault(PLACEMENT_TOKEN, "requires PLACEMENT_ENDPOINT")
        return Token(endpoint, env.read(PLACEMENT_TOKEN))
    kind = env.read(AUTH_TYPE)
    options = {name: env.read(setting) for name, setting in _KEYSTONE.items()}
    needed = ("auth_url", *_KEYSTONE_NEEDS[kind]) if not env.is_faulty(AUTH_TYPE) else ()
    for name in needed:
        if not options[name]:
            env.fault(_KEYSTONE[name], "is missing or wrong; without PLACEMENT_TOKEN, Keystone is used")
    return Keystone(
        kind, {name: options[name] for name in needed}, env.read(REGION_NAME), env.read(INTERFACE), endpoint
    )
