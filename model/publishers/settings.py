"""Settings of the publishers: status file and OpenStack Placement."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.environment import Environment
from ..common.targets import is_url, without_password

#: Of a user or group; one more is -1, which leaves them as they are.
_LARGEST_ID = 2**32 - 2

_PASSWORD_NEEDS = ("username", "password", "project_name", "user_domain_name", "project_domain_name")

#: What each kind of login takes beside the URL of Keystone.
_KEYSTONE_NEEDS = {
    "password": _PASSWORD_NEEDS,
    "v3password": _PASSWORD_NEEDS,
    "v3applicationcredential": ("application_credential_id", "application_credential_secret"),
}


@dataclass(frozen=True, slots=True)
class Token:
    """A token that is given and never renewed."""

    endpoint: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Keystone:
    """Who we are for Keystone, which hands out tokens and knows where Placement is.

    Attributes
    ----------
    kind : str
        Name of keystoneauth1's plugin.
    options : mapping of str to str
        The plugin's own, passwords among them.
    region : str
        Empty for any.
    interface : str
    endpoint : str
        Of Placement, when it is not the one that Keystone names.
    """

    kind: str
    options: Mapping[str, str] = field(repr=False)
    region: str
    interface: str
    endpoint: str


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """Whose allocation ratios are kept, and where.

    Attributes
    ----------
    providers : mapping of str to str
        Node to the UUID or the name of its resource provider.
    login : Token or Keystone
    ca_file : str
        Certificates that are trusted; empty for those that requests comes with.
    timeout_s, round_timeout_s : float
        For the silence within a request; for all nodes together.
    least_ratio, most_ratio : float
    """

    providers: Mapping[str, str]
    login: Token | Keystone
    ca_file: str
    timeout_s: float
    round_timeout_s: float
    least_ratio: float
    most_ratio: float


@dataclass(frozen=True, slots=True)
class StatusFileSettings:
    """The file that a scheduler reads.

    Attributes
    ----------
    path : Path
    mode : int
        Its permissions.
    uid, gid : int
        Its owner; -1 leaves it as it comes.
    """

    path: Path
    mode: int
    uid: int
    gid: int


def parse_providers(value: Any) -> dict[str, str]:
    """``PLACEMENT_PROVIDERS``, decoded.

    Raises
    ------
    ValueError
        Naming the node.
    """
    if not isinstance(value, dict) or not value:
        raise ValueError("is not an object of node URLs and their resource providers")
    providers: dict[str, str] = {}
    owners: dict[str, str] = {}
    for name, provider in value.items():
        node = without_password(name) if is_url(name) else name
        if not node or not node.isprintable():
            raise ValueError("an entry has no node")
        if not isinstance(provider, str) or not provider.strip() or not provider.isprintable():
            raise ValueError(f"{node}: its provider is neither a UUID nor a name")
        if node in providers:
            raise ValueError(f"node {node} is there already")
        if (owner := owners.setdefault(provider, node)) != node:
            raise ValueError(f"{owner} and {node} have the same provider")
        providers[node] = provider
    return providers


def _placement_login(env: Environment) -> Token | Keystone:
    """A fixed token, or else Keystone under the names that OpenStack's own clients read."""
    endpoint = env.url("PLACEMENT_ENDPOINT")
    token = env.text("PLACEMENT_TOKEN")
    kind = env.text("OS_AUTH_TYPE", "password")
    options = {
        "auth_url": env.url("OS_AUTH_URL"),
        "username": env.text("OS_USERNAME"),
        "password": env.text("OS_PASSWORD"),
        "project_name": env.text("OS_PROJECT_NAME"),
        "user_domain_name": env.text("OS_USER_DOMAIN_NAME", "Default"),
        "project_domain_name": env.text("OS_PROJECT_DOMAIN_NAME", "Default"),
        "application_credential_id": env.text("OS_APPLICATION_CREDENTIAL_ID"),
        "application_credential_secret": env.text("OS_APPLICATION_CREDENTIAL_SECRET"),
    }
    region = env.text("OS_REGION_NAME")
    interface = env.text("OS_INTERFACE", "public")
    for key, url in (("PLACEMENT_ENDPOINT", endpoint), ("OS_AUTH_URL", options["auth_url"])):
        if without_password(url) != url:
            env.fault(key, "holds a user or a password, which is not taken")
    if token:
        if not endpoint:
            env.fault("PLACEMENT_TOKEN", "needs PLACEMENT_ENDPOINT")
        if not token.isascii():
            env.fault("PLACEMENT_TOKEN", "can't be sent: it holds characters that no token has")
        return Token(endpoint, token)
    if kind not in _KEYSTONE_NEEDS:
        env.fault("OS_AUTH_TYPE", f"{kind!r} is none of {', '.join(_KEYSTONE_NEEDS)}")
        return Token(endpoint, token)
    needs = ("auth_url", *_KEYSTONE_NEEDS[kind])
    for name in needs:
        if not options[name]:
            env.fault(f"OS_{name.upper()}", "is missing or wrong; without PLACEMENT_TOKEN, Keystone is asked")
    return Keystone(kind, {name: options[name] for name in needs}, region, interface, endpoint)


def placement_settings(env: Environment) -> PlacementSettings | None:
    """Whose ratios are kept in OpenStack Placement; None when no node is mapped to a provider."""
    providers: dict[str, str] = env.json("PLACEMENT_PROVIDERS", parse_providers, {})
    if not env.text("PLACEMENT_PROVIDERS"):
        return None
    ca_file = env.text("OS_CACERT")
    if ca_file and not Path(ca_file).is_file():
        env.fault("OS_CACERT", "is no file")
    return PlacementSettings(
        providers=providers,
        login=_placement_login(env),
        ca_file=ca_file,
        timeout_s=env.number("PLACEMENT_TIMEOUT_S", 5.0, 0.1, 600),
        round_timeout_s=env.number("PLACEMENT_ROUND_TIMEOUT_S", 30.0, 0.1, 3600),
        # Not 0: as a ratio in its own settings, nova took that for unset.
        least_ratio=0.0001 if env.whole("PLACEMENT_ALLOW_BELOW_ONE", 0, 0, 1) else 1.0,
        # 99 is the largest with four decimals that a FLOAT of MySQL gives back as it was.
        most_ratio=env.number("PLACEMENT_MAX_RATIO", 16.0, 1.0, 99.0),
    )


def status_file_mode(env: Environment) -> int:
    """Permissions of the status file."""
    text = env.text("STATE_MODE", "0644")
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0o400 <= mode <= 0o777 or not mode & 0o400:
        env.fault("STATE_MODE", f"{text!r} is not a mode such as 0644 that lets the owner read")
    return mode


def status_file_owner(env: Environment) -> tuple[int, int]:
    """Numbers of the user and the group that ``USER:GROUP`` names, either of which may be left out."""
    user, _, group = env.text("STATE_OWNER").partition(":")
    uid = gid = -1
    try:
        if user:
            uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
        if group:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except (KeyError, ValueError) as error:
        env.fault("STATE_OWNER", str(error.args[0]))
    if max(uid, gid) > _LARGEST_ID:
        env.fault("STATE_OWNER", f"a number is larger than {_LARGEST_ID}")
    return uid, gid
