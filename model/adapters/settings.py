"""What each daemon is set to: every fault is found before anything starts, and all are told together."""

from __future__ import annotations

import grp
import logging
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.adapters.environment import Environment, SettingsError, is_url, node_name, without_password
from model.assembly import Calendar
from model.ballooning import Rules

LOG = logging.getLogger("scroogevm")

#: Of each node; more would keep the estimator from its work for hours.
_MOST_SLICES_AT_START = 100_000
#: Who asks a node more often than ten times a second harms it.
_SHORTEST_DELAY_S = 0.1
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
class VmprobeStub:
    """A worker node that runs vmprobe.

    Attributes
    ----------
    node : str
        Its name everywhere: the URL, without a password if it holds one.
    url : str
    prefix : str
        Of vmprobe's metrics on the page.
    """

    node: str
    url: str = field(repr=False)
    prefix: str


@dataclass(frozen=True, slots=True)
class LabelStub:
    """A worker node that runs node_exporter and a libvirt exporter."""

    node: str
    node_exporter: str = field(repr=False)
    libvirt_exporter: str = field(repr=False)


Stub = VmprobeStub | LabelStub


@dataclass(frozen=True, slots=True)
class InfluxSettings:
    """Where InfluxDB is, and who we are there."""

    url: str
    token: str = field(repr=False)
    org: str
    bucket: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where samples are kept: in InfluxDB, or in a file of our own.

    Attributes
    ----------
    influx : InfluxSettings or None
    path : Path
        The file of the embedded store.
    retention_s : float
        How long the embedded store keeps a sample; InfluxDB's bucket has its own.
    """

    influx: InfluxSettings | None
    path: Path
    retention_s: float


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
class AggregatorSettings:
    """What ``vmaggreg.py`` does.

    Attributes
    ----------
    stubs : tuple of Stub
    fetch_delay_s : float
        Between two scrapes; 0 takes each probe's own.
    timeout_s : float
        For a scrape as a whole.
    max_page_bytes, queue_bytes : int
        The largest page that is read; how much waits for a store that is away.
    metrics_port : int
        Of our own metrics; 0 for none.
    metrics_address : str
    store : StoreSettings
    """

    stubs: tuple[Stub, ...]
    fetch_delay_s: float
    timeout_s: float
    max_page_bytes: int
    queue_bytes: int
    metrics_port: int
    metrics_address: str
    store: StoreSettings


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


@dataclass(frozen=True, slots=True)
class EstimatorSettings:
    """What ``scroogevm.py`` does when it is not replaying.

    Attributes
    ----------
    nodes : tuple of str
    calendar : Calendar
        Slices and scopes.
    historical : int
        h.
    previous_scopes : int
        How many scopes before the current one are read where nothing is remembered.
    settle_s : float
        From the end of a slice until it is read.
    status : StatusFileSettings
    memory_path : Path
        Where the models' memory is kept.
    dump_slices : int
        How many slices a dump holds at most.
    metrics_port : int
        Of our own metrics; 0 for none.
    metrics_address : str
    store : StoreSettings
    placement : PlacementSettings or None
        OpenStack's, if it is to be kept up to date.
    """

    nodes: tuple[str, ...]
    calendar: Calendar
    historical: int
    previous_scopes: int
    settle_s: float
    status: StatusFileSettings
    memory_path: Path
    dump_slices: int
    metrics_port: int
    metrics_address: str
    store: StoreSettings
    placement: PlacementSettings | None = None


@dataclass(frozen=True, slots=True)
class BallooningSettings:
    """What ``vmballooning.py`` does.

    Attributes
    ----------
    hosts : mapping of node to libvirt URI
    rules : Rules
    sleep_s, check_s : float
        Between two plans; between two looks at a guest that is squeezed.
    timeout_s : float
        For each call to a host.
    journal_path : Path
    metrics_port : int
        Of our own metrics; 0 for none.
    metrics_address : str
    store : StoreSettings
    """

    hosts: Mapping[str, str]
    rules: Rules
    sleep_s: float
    check_s: float
    timeout_s: float
    journal_path: Path
    metrics_port: int
    metrics_address: str
    store: StoreSettings


def parse_stubs(value: Any) -> tuple[Stub, ...]:
    """``AGGREG_STUB_LIST``, decoded.

    Raises
    ------
    ValueError
        Naming the place in the list.
    """
    if not isinstance(value, list):
        raise ValueError("is not a list")
    stubs = tuple(_parse_stub(entry, f"entry {i + 1}") for i, entry in enumerate(value))
    seen: set[str] = set()
    for i, stub in enumerate(stubs):
        if stub.node in seen:
            raise ValueError(f"entry {i + 1}: node {stub.node} is there already")
        seen.add(stub.node)
    return stubs


def _parse_stub(entry: Any, place: str) -> Stub:
    if isinstance(entry, list):
        if len(entry) != 2 or not all(isinstance(part, str) and part for part in entry):
            raise ValueError(f'{place}: is not ["http://worker:9100/metrics", "prefix"]')
        url, prefix = entry
        if not is_url(url):
            raise ValueError(f"{place}: is not an http(s) URL")
        if not all(c.isascii() and (c.isalnum() or c in "_:") for c in prefix) or prefix[0].isdigit():
            raise ValueError(f"{place}: {prefix!r} can't be the prefix of a metric")
        if not prefix.strip("_:"):
            raise ValueError(f"{place}: {prefix!r} can't be the prefix of a metric")
        return VmprobeStub(without_password(url), url, prefix.rstrip("_"))
    keys = {"node", "node_exporter", "libvirt_exporter"}
    if isinstance(entry, dict) and set(entry) == keys and all(isinstance(entry[key], str) for key in keys):
        for key in ("node_exporter", "libvirt_exporter"):
            if not is_url(entry[key]):
                raise ValueError(f"{place}: {key} is not an http(s) URL")
        if not entry["node"] or not entry["node"].isprintable():
            raise ValueError(f"{place}: node is no name")
        return LabelStub(
            node_name(entry["node"]),
            entry["node_exporter"],
            entry["libvirt_exporter"],
        )
    raise ValueError(f"{place}: is neither [URL, prefix] nor an object with {', '.join(sorted(keys))}")


def _influx(env: Environment) -> InfluxSettings | None:
    url = env.url("INFLUXDB_URL")
    if not env.text("INFLUXDB_URL"):
        return None
    why = "INFLUXDB_URL asks for it"
    token = env.required("INFLUXDB_TOKEN", why)
    if not token.isascii() or not token.isprintable():
        env.fault("INFLUXDB_TOKEN", "can't be sent: it holds characters that no token has")
    return InfluxSettings(
        url=url,
        token=token,
        org=env.required("INFLUXDB_ORG", why),
        bucket=env.required("INFLUXDB_BUCKET", why),
        timeout_s=env.number("INFLUXDB_TIMEOUT_S", 10.0, 0.1, 600),
    )


def status_path(env: Environment) -> Path:
    """Where the status file is."""
    return Path(env.text("STATE_ENDPOINT", "/var/lib/scroogevm/status.json"))


def store_settings(env: Environment) -> StoreSettings:
    """Which store is meant, by all three daemons."""
    return StoreSettings(
        influx=_influx(env),
        path=Path(env.text("STORE_PATH", str(status_path(env).parent / "store.sqlite"))),
        retention_s=env.number("STORE_RETENTION_S", 30 * 86400.0, 3600),
    )


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


def aggregator_settings(env: Environment) -> AggregatorSettings:
    """The settings of ``vmaggreg.py``.

    Raises
    ------
    SettingsError
        With all faults.
    """
    stubs: tuple[Stub, ...] = env.json("AGGREG_STUB_LIST", parse_stubs, ())
    if not stubs and not any(fault.startswith("AGGREG_STUB_LIST") for fault in env.faults):
        example = '[["http://worker1:9100/metrics", "vmprobe"]]'
        env.fault("AGGREG_STUB_LIST", f"names no worker node{env.without}; e.g. {example}")
    fetch_delay_s = env.number("AGGREG_FETCH_DELAY", 0.0, 0, 86400)
    if 0 < fetch_delay_s < _SHORTEST_DELAY_S:
        env.fault("AGGREG_FETCH_DELAY", f"is neither 0 nor at least {_SHORTEST_DELAY_S}")
    settings = AggregatorSettings(
        stubs=stubs,
        fetch_delay_s=fetch_delay_s,
        timeout_s=env.number("AGGREG_TIMEOUT_S", 4.0, 0.05, 600),
        max_page_bytes=env.whole("AGGREG_MAX_PAGE_MB", 8, 1, 1024) * 2**20,
        queue_bytes=env.whole("AGGREG_QUEUE_MB", 256, 1, 2**20) * 2**20,
        metrics_port=env.whole("AGGREG_METRICS_PORT", 0, 0, 65535),
        metrics_address=env.text("METRICS_ADDRESS", "127.0.0.1"),
        store=store_settings(env),
    )
    if env.faults:
        raise SettingsError(env.faults)
    return settings


def parse_nodes(value: Any) -> tuple[str, ...]:
    """A list of node URLs, decoded.

    Raises
    ------
    ValueError
        When it is none.
    """
    if not isinstance(value, list) or not value or not all(isinstance(node, str) and node for node in value):
        raise ValueError('is not a list of URLs such as ["http://node:9100/metrics"]')
    nodes = tuple(node_name(node) for node in value)
    for i, node in enumerate(nodes):
        if not node.isprintable():
            raise ValueError(f"entry {i + 1} holds characters that can't be printed")
        if node in nodes[:i]:
            raise ValueError(f"entry {i + 1}: node {node} is there already")
    return nodes


def _calendar(env: Environment) -> Calendar:
    faults = len(env.faults)
    scope_s = env.whole("SCHED_SCOPE_S", 86400, 1, 10**9)
    slice_s = env.whole("SCHED_SCOPE_SLICE_S", 1800, 1, 10**9)
    if scope_s % slice_s and len(env.faults) == faults:
        env.fault("SCHED_SCOPE_S", f"{scope_s} is not a multiple of SCHED_SCOPE_SLICE_S, {slice_s}")
    return Calendar(slice_s, max(scope_s // slice_s, 1))


def _mode(env: Environment) -> int:
    text = env.text("STATE_MODE", "0644")
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0o400 <= mode <= 0o777 or not mode & 0o400:
        env.fault("STATE_MODE", f"{text!r} is not a mode such as 0644 that lets the owner read")
    return mode


def _owner(env: Environment) -> tuple[int, int]:
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


def _refuse_one_file_for_two(env: Environment, settings: EstimatorSettings) -> None:
    """A status file written over the store would be the end of what is stored."""
    files = {"STATE_ENDPOINT": settings.status.path, "SCHED_MEMORY_PATH": settings.memory_path}
    if settings.store.influx is None:
        files["STORE_PATH"] = settings.store.path
    owners: dict[str, str] = {}
    for key, path in files.items():
        if (owner := owners.setdefault(os.path.realpath(path.expanduser()), key)) != key:
            env.fault(key, f"is the file of {owner}")


def estimator_settings(env: Environment, nodes: tuple[str, ...] = ()) -> EstimatorSettings:
    """The settings of ``scroogevm.py``.

    Parameters
    ----------
    env : Environment
    nodes : tuple of str
        From the command line, instead of ``SCHED_NODES``.

    Raises
    ------
    SettingsError
        With all faults.
    """
    if not nodes:
        # The same machines, unless it is said otherwise.
        stubs: tuple[Stub, ...] = env.json("AGGREG_STUB_LIST", parse_stubs, ())
        nodes = env.json("SCHED_NODES", parse_nodes, tuple(stub.node for stub in stubs))
    if not nodes and not any(fault.startswith(("SCHED_NODES", "AGGREG_STUB_LIST")) for fault in env.faults):
        env.fault("SCHED_NODES", f'names no node{env.without}; e.g. ["http://worker1:9100/metrics"]')
    calendar = _calendar(env)
    path, mode, (uid, gid) = status_path(env), _mode(env), _owner(env)
    settings = EstimatorSettings(
        nodes=nodes,
        calendar=calendar,
        historical=env.whole("SCHED_SCOPE_HISTORICAL", 3, 0, 10_000),
        previous_scopes=env.whole("SCHED_SCOPE_INIT_FETCH_PREVIOUS", 4, 0, 10_000),
        settle_s=min(env.number("SCHED_SETTLE_S", 10.0, 0, 3600), calendar.slice_s / 4),
        status=StatusFileSettings(path, mode, uid, gid),
        memory_path=Path(env.text("SCHED_MEMORY_PATH", str(path.parent / "estimator.sqlite"))),
        dump_slices=env.whole("SCHED_DUMP_SLICES", 500, 1, 10**6),
        metrics_port=env.whole("SCHED_METRICS_PORT", 0, 0, 65535),
        metrics_address=env.text("METRICS_ADDRESS", "127.0.0.1"),
        store=store_settings(env),
        placement=placement_settings(env),
    )
    _refuse_one_file_for_two(env, settings)
    delay_s = env.number("AGGREG_FETCH_DELAY", 0.0, 0, 86400)
    if settings.previous_scopes * calendar.positions > _MOST_SLICES_AT_START:
        env.fault("SCHED_SCOPE_INIT_FETCH_PREVIOUS", f"asks for more than {_MOST_SLICES_AT_START} slices at the start")
    if env.faults:
        raise SettingsError(env.faults)
    if 4 * delay_s > calendar.slice_s:
        LOG.warning(
            "SCHED_SCOPE_SLICE_S: a slice of %g s holds fewer than four scrapes, one every %g s",
            *(calendar.slice_s, delay_s),
        )
    return settings


def parse_hosts(value: Any) -> dict[str, str]:
    """``LIBVIRT_NODES``, decoded: node to libvirt URI.

    Raises
    ------
    ValueError
        Naming the node.
    """
    if not isinstance(value, dict) or not all(isinstance(uri, str) and uri.isprintable() for uri in value.values()):
        raise ValueError('is not an object such as {"http://worker1:9100/metrics": "qemu+ssh://root@worker1/system"}')
    hosts: dict[str, str] = {}
    for node, uri in value.items():
        name = node_name(node)
        if ":" not in uri:
            raise ValueError(f"{name}: is not given a libvirt URI such as qemu+ssh://root@worker1/system")
        if name in hosts:
            raise ValueError(f"{name}: is there already")
        if uri in hosts.values():
            raise ValueError(f"{name}: has the URI of another node")
        hosts[name] = uri
    return hosts


def parse_patterns(value: Any) -> tuple[str, ...]:
    """``BALLOONING_EXCLUDE``, decoded.

    Raises
    ------
    ValueError
        When it is no list of texts.
    """
    if not isinstance(value, list) or not all(isinstance(pattern, str) and pattern for pattern in value):
        raise ValueError('is not a list of patterns such as ["db-*"]')
    return tuple(value)


def _scope_s(env: Environment) -> float:
    minutes = env.number("BALLOONING_SCOPE_MN", 0.0, 0, 10_000)
    return env.number("BALLOONING_SCOPE_S", 60 * minutes or 3600.0, 1, 10**6)


def ballooning_settings(env: Environment) -> BallooningSettings:
    """The settings of ``vmballooning.py``.

    Raises
    ------
    SettingsError
        With all faults.
    """
    hosts: dict[str, str] = env.json("LIBVIRT_NODES", parse_hosts, {})
    if not hosts and not any(fault.startswith("LIBVIRT_NODES") for fault in env.faults):
        example = '{"http://worker1:9100/metrics": "qemu+ssh://root@worker1/system"}'
        env.fault("LIBVIRT_NODES", f"names no node{env.without}; e.g. {example}")
    rules = Rules(
        scope_s=_scope_s(env),
        grace_s=env.number("BALLOONING_GRACE_PERIOD_S", 3600.0, 0, 10**7),
        threshold_gain_mb=env.number("BALLOONING_THRESHOLD_GAIN_MB", 512.0, 0, 10**9),
        min_config_mb=env.number("BALLOONING_MIN_CONFIG_MB", 1024.0, 1, 10**9),
        headroom_share=env.number("BALLOONING_HEADROOM_PCT", 20.0, 0, 1000) / 100,
        headroom_mb=env.number("BALLOONING_HEADROOM_MB", 64.0, 16, 10**9),
        step_share=env.number("BALLOONING_STEP_PCT", 5.0, 0, 100) / 100,
        step_mb=env.number("BALLOONING_STEP_MB", 128.0, 1, 10**9),
        session_s=env.number("BALLOONING_SESSION_S", 120.0, 1, 86400),
        stuck_s=env.number("BALLOONING_STUCK_S", 10.0, 1, 3600),
        stats_age_s=env.number("BALLOONING_STATS_AGE_S", 30.0, 2, 3600),
        sessions_per_host=env.whole("BALLOONING_SESSIONS_PER_HOST", 4, 1, 1000),
        excluded=env.json("BALLOONING_EXCLUDE", parse_patterns, ()),
    )
    settings = BallooningSettings(
        hosts=hosts,
        rules=rules,
        sleep_s=env.number("BALLOONING_SCOPE_SLEEP_S", 60.0, 0.1, 86400),
        check_s=env.number("BALLOONING_CHECK_S", 2.0, 0.1, 60),
        timeout_s=env.number("BALLOONING_TIMEOUT_S", 5.0, 0.5, 120),
        journal_path=Path(env.text("BALLOONING_JOURNAL_PATH", str(status_path(env).parent / "ballooning.json"))),
        metrics_port=env.whole("BALLOONING_METRICS_PORT", 0, 0, 65535),
        metrics_address=env.text("METRICS_ADDRESS", "127.0.0.1"),
        store=store_settings(env),
    )
    if env.faults:
        raise SettingsError(env.faults)
    return settings
