"""Settings of the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.environment import Environment
from ..common.settings import InvalidValue, Section, Setting, ascii_token
from ..common.targets import http_url
from .prometheus_queries import Matcher, is_label_name, parse_matchers
from .prometheus_server import Access

_STATUS = Section("Published status file (scroogevm.py)")
STATE_ENDPOINT = _STATUS.text(
    "STATE_ENDPOINT",
    "/var/lib/scroogevm/status.json",
    "The published status file. The other files of the daemons are beside it unless their own settings say otherwise.",
)


_STORE = Section("Store (all daemons)")
INFLUXDB_URL = _STORE.text(
    "INFLUXDB_URL",
    "",
    "URL of an InfluxDB 2.x server. When it is empty, samples are kept in the embedded store, a SQLite file. "
    "misc/influxdb.sh starts a server and prints this setting and the next three.",
    parse=http_url,
    example="http://127.0.0.1:8086",
)
INFLUXDB_TOKEN = _STORE.text("INFLUXDB_TOKEN", "", "API token of InfluxDB.", parse=ascii_token, secret=True)
INFLUXDB_ORG = _STORE.text("INFLUXDB_ORG", "", "Organisation in InfluxDB.", example="scroogevm")
INFLUXDB_BUCKET = _STORE.text("INFLUXDB_BUCKET", "", "Bucket in InfluxDB.", example="scroogevm")
INFLUXDB_COARSE_BUCKET = _STORE.text(
    "INFLUXDB_COARSE_BUCKET",
    "",
    "Bucket with one sample per STORE_COARSE_STEP_S, from which periods are read that INFLUXDB_BUCKET no longer has. "
    "misc/influxdb.sh makes it, and the task that fills it.",
    example="scroogevm_coarse",
)
INFLUXDB_TIMEOUT_S = _STORE.number(
    "INFLUXDB_TIMEOUT_S", 10.0, 0.1, 600, "Seconds after which a request to InfluxDB counts as failed."
)
STORE_PATH = _STORE.text(
    "STORE_PATH",
    "",
    "File of the embedded store. The default is store.sqlite beside STATE_ENDPOINT.",
    shown="/var/lib/scroogevm/store.sqlite",
)
STORE_RETENTION_S = _STORE.number(
    "STORE_RETENTION_S",
    365 * 86400.0,
    3600,
    1e12,
    "Seconds for which the embedded store keeps a sample. The buckets of InfluxDB have their own retention.",
)
STORE_FULL_S = _STORE.number(
    "STORE_FULL_S",
    6 * 86400.0,
    3600,
    1e12,
    "Seconds for which the embedded store keeps every sample. Of older ones it keeps one per STORE_COARSE_STEP_S. The "
    "default is longer than what the estimator reads when it starts without a checkpoint: some strategies publish more "
    "from fewer samples.",
)
STORE_COARSE_STEP_S = _STORE.whole(
    "STORE_COARSE_STEP_S",
    300,
    0,
    3600,
    "Of samples older than STORE_FULL_S, one per so many seconds is kept, in which usage is the largest. "
    "SCHED_SCOPE_SLICE_S should be a multiple of it. 0 keeps every sample for STORE_RETENTION_S.",
)


def _matchers(text: str) -> tuple[Matcher, ...]:
    try:
        return parse_matchers(text)
    except ValueError as error:
        raise InvalidValue(str(error)) from None


def _label(text: str) -> str:
    if not is_label_name(text):
        raise InvalidValue(f"{text!r} is not the name of a label")
    return text


def _headers(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError('is not an object of texts such as {"X-Scope-OrgID": "cloud"}')
    for name, text in value.items():
        if not (name.isascii() and name.replace("-", "").isalnum()):
            raise ValueError("has a key that is not the name of a header")
        if not (text.isascii() and text.isprintable()) or text != text.strip():
            raise ValueError(f"header {name} cannot be sent")
    return value


def _pairs(value: Any) -> Mapping[str, NodePair]:
    example = '{"worker1": {"node": "10.0.0.1:9100", "libvirt": "10.0.0.1:9177"}}'
    if not isinstance(value, dict) or not value:
        raise ValueError(f"is not an object such as {example}")
    pairs = {}
    for name, pair in value.items():
        if not name or not name.isprintable():
            raise ValueError("has a key that is not the name of a node")
        if (
            not isinstance(pair, dict)
            or set(pair) != {"node", "libvirt"}
            or not all(_is_text(of) for of in pair.values())
        ):
            raise ValueError(f"{name}: is not an object such as {example}")
        pairs[name] = NodePair(pair["node"], pair["libvirt"])
    for key in ("node", "libvirt"):
        values = [getattr(pair, key) for pair in pairs.values()]
        if twice := next((text for text in values if values.count(text) > 1), None):
            raise ValueError(f"{twice} is the {key} of two nodes")
    return pairs


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


@dataclass(frozen=True, slots=True)
class NodePair:
    """The two exporters of a node.

    Attributes
    ----------
    node, libvirt : str
        Their labels ``instance``, or those of the label that names nodes.
    step_s : int
        The interval at which they are scraped; 0 for one that has to be measured.
    """

    node: str
    libvirt: str
    step_s: int = 0


_PROMETHEUS = Section("Prometheus of the site, instead of a store (scroogevm.py, vmballooning.py)")
PROMETHEUS_URL = _PROMETHEUS.text(
    "PROMETHEUS_URL",
    "",
    "URL of a server with the query API of Prometheus (Prometheus, Thanos, Mimir, VictoriaMetrics) that scrapes "
    "node_exporter and a libvirt exporter. scroogevm.py and vmballooning.py read from it, then neither vmaggreg.py nor "
    "a store is needed, and the nodes are found on it. Not together with INFLUXDB_URL. vmaggreg.py does not read this "
    "setting: it writes to the other stores.",
    parse=http_url,
    example="http://127.0.0.1:9090",
)
PROMETHEUS_TOKEN = _PROMETHEUS.text("PROMETHEUS_TOKEN", "", "Bearer token.", parse=ascii_token, secret=True)
PROMETHEUS_USER = _PROMETHEUS.text("PROMETHEUS_USER", "", "User of basic authentication.")
PROMETHEUS_PASSWORD = _PROMETHEUS.text("PROMETHEUS_PASSWORD", "", "Its password.", secret=True)
PROMETHEUS_CA = _PROMETHEUS.text("PROMETHEUS_CA", "", "File of the certificates to trust instead of the system's.")
PROMETHEUS_HEADERS: Setting[Mapping[str, str]] = _PROMETHEUS.json(
    "PROMETHEUS_HEADERS",
    {},
    _headers,
    "Headers that are sent with each request, a JSON object, such as the tenant of Mimir.",
    example='{"X-Scope-OrgID": "cloud"}',
    secret=True,
)
PROMETHEUS_MATCH: Setting[tuple[Matcher, ...]] = _PROMETHEUS.value(
    "PROMETHEUS_MATCH",
    (),
    _matchers,
    "Matchers that all series must fulfil, with commas between them; needed where a server has several sites.",
    example='cluster="a"',
)
PROMETHEUS_NODE_LABEL = _PROMETHEUS.text(
    "PROMETHEUS_NODE_LABEL",
    "",
    "A label whose value both exporters of a node have in common and no other node has. It names the node. The default "
    "is the host part of the label instance.",
    parse=_label,
    example="node",
)
PROMETHEUS_NODES: Setting[Mapping[str, NodePair]] = _PROMETHEUS.json(
    "PROMETHEUS_NODES",
    {},
    _pairs,
    "The nodes and the labels instance of their exporters, a JSON object, where they cannot be found.",
    example='{"worker1": {"node": "10.0.0.1:9100", "libvirt": "10.0.0.1:9177"}}',
)
PROMETHEUS_STEP_S = _PROMETHEUS.whole(
    "PROMETHEUS_STEP_S",
    0,
    0,
    3600,
    "Seconds between two samples that are read. 0 takes the interval at which the exporters are scraped.",
)
PROMETHEUS_TIMEOUT_S = _PROMETHEUS.number(
    "PROMETHEUS_TIMEOUT_S", 60.0, 0.1, 600, "Seconds after which a query counts as failed."
)
PROMETHEUS_MAX_SAMPLES = _PROMETHEUS.whole(
    "PROMETHEUS_MAX_SAMPLES",
    5_000_000,
    1000,
    10**9,
    "Samples that one query may ask for: fewer nodes are read at once then. The limit of Prometheus is "
    "--query.max-samples, 50,000,000.",
)
PROMETHEUS_QUERIES_AT_ONCE = _PROMETHEUS.whole(
    "PROMETHEUS_QUERIES_AT_ONCE", 4, 1, 100, "Number of queries that the server gets at once."
)

_SCRIPT = Section("misc/influxdb.sh only")
_SCRIPT.whole("INFLUXDB_RETENTION_S", 2592000, 3600, 10**12, "Retention of the bucket that the script makes, seconds.")
_SCRIPT.whole("INFLUXDB_COARSE_RETENTION_S", 31536000, 3600, 10**12, "Retention of INFLUXDB_COARSE_BUCKET, seconds.")
_SCRIPT.text("INFLUXDB_LISTEN", "127.0.0.1", "Address on which the server listens.")
_SCRIPT.text("INFLUXDB_USER", "scroogevm", "Account of the web page.")
_SCRIPT.text("INFLUXDB_PASSWORD", "", "Password of that account. The script makes one when it is empty.", secret=True)
_SCRIPT.text("INFLUXDB_IMAGE", "influxdb:2.7", "Container image.")
_SCRIPT.text("INFLUXDB_NAME", "scroogevm-influxdb", "Name of the container and of its volume.")
_SCRIPT.whole("INFLUXDB_WAIT_S", 60, 1, 3600, "Seconds to wait until the server responds.")


@dataclass(frozen=True, slots=True)
class InfluxSettings:
    """An InfluxDB bucket and the credentials for it.

    Attributes
    ----------
    coarse_bucket : str
        Has one sample per ``step_s`` seconds; empty when there is none.
    """

    url: str
    token: str = field(repr=False)
    org: str
    bucket: str
    timeout_s: float
    coarse_bucket: str = ""
    step_s: int = 300


@dataclass(frozen=True, slots=True)
class Thinning:
    """Of samples older than ``full_s`` seconds, one per ``step_s`` seconds remains."""

    full_s: float
    step_s: int


@dataclass(frozen=True, slots=True)
class PrometheusSettings:
    """A server with the query API of Prometheus, and the nodes on it.

    Attributes
    ----------
    access : Access
    match : tuple of Matcher
        That all series must fulfil.
    node_label : str
        The label that names the nodes; empty for the host part of ``instance``.
    nodes : mapping of name to NodePair
        The nodes; empty where they have to be found.
    step_s : int
        0 for the scrape interval.
    max_samples : int
        Of one query.
    """

    access: Access
    match: tuple[Matcher, ...] = ()
    node_label: str = ""
    nodes: Mapping[str, NodePair] = field(default_factory=dict)
    step_s: int = 0
    max_samples: int = 5_000_000


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where samples are kept: in InfluxDB, on a Prometheus server that is only read, or in the embedded store.

    Attributes
    ----------
    influx : InfluxSettings or None
    path : Path
        File of the embedded store.
    retention_s : float
        For how long the embedded store keeps a sample.
    thinning : Thinning or None
        Which samples the embedded store thins; None: none.
    prometheus : PrometheusSettings or None
    """

    influx: InfluxSettings | None
    path: Path
    retention_s: float
    thinning: Thinning | None = None
    prometheus: PrometheusSettings | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether the store is the file at ``path``."""
        return self.influx is None and self.prometheus is None


def status_path(env: Environment) -> Path:
    """Path of the status file."""
    path = Path(env.read(STATE_ENDPOINT))
    if path.is_dir():
        env.fault(STATE_ENDPOINT, f"{path} is a folder, not a file")
    return path


def store_settings(env: Environment, *, written: bool = False) -> StoreSettings:
    """The store that a daemon uses.

    Parameters
    ----------
    env : Environment
    written : bool
        Whether it is written: then it is not a Prometheus server.
    """
    beside = status_path(env).parent / "store.sqlite"
    path = Path(env.read(STORE_PATH, str(beside)))
    if path.is_dir():
        env.fault(STORE_PATH, f"{path} is a folder, not a file")
    prometheus = None if written else _prometheus(env)
    step_s, full_s = env.read(STORE_COARSE_STEP_S), env.read(STORE_FULL_S)
    return StoreSettings(
        influx=_influx(env, step_s) if prometheus is None else None,
        path=path,
        retention_s=env.read(STORE_RETENTION_S),
        thinning=Thinning(full_s, step_s) if step_s else None,
        prometheus=prometheus,
    )


def _prometheus(env: Environment) -> PrometheusSettings | None:
    if not env.is_set(PROMETHEUS_URL):
        return None
    if env.is_set(INFLUXDB_URL):
        env.fault(PROMETHEUS_URL, "INFLUXDB_URL is set too; samples are read from one of them")
    if env.is_set(PROMETHEUS_TOKEN) and env.is_set(PROMETHEUS_USER):
        env.fault(PROMETHEUS_TOKEN, "PROMETHEUS_USER is set too; the server takes one of them")
    if env.is_set(PROMETHEUS_PASSWORD):
        env.require(PROMETHEUS_USER, "PROMETHEUS_PASSWORD requires it")
    if env.is_set(PROMETHEUS_NODES) and env.is_set(PROMETHEUS_NODE_LABEL):
        env.fault(PROMETHEUS_NODES, "PROMETHEUS_NODE_LABEL is set too; nodes are named by one of them")
    ca_file = env.read(PROMETHEUS_CA)
    if ca_file and not Path(ca_file).is_file():
        env.fault(PROMETHEUS_CA, f"{ca_file} is not a file")
    return PrometheusSettings(
        access=Access(
            url=env.read(PROMETHEUS_URL),
            token=env.read(PROMETHEUS_TOKEN),
            user=env.read(PROMETHEUS_USER),
            password=env.read(PROMETHEUS_PASSWORD),
            ca_file=ca_file,
            headers=env.read(PROMETHEUS_HEADERS),
            timeout_s=env.read(PROMETHEUS_TIMEOUT_S),
            queries_at_once=env.read(PROMETHEUS_QUERIES_AT_ONCE),
        ),
        match=env.read(PROMETHEUS_MATCH),
        node_label=env.read(PROMETHEUS_NODE_LABEL),
        nodes=env.read(PROMETHEUS_NODES),
        step_s=env.read(PROMETHEUS_STEP_S),
        max_samples=env.read(PROMETHEUS_MAX_SAMPLES),
    )


def _influx(env: Environment, step_s: int) -> InfluxSettings | None:
    coarse_bucket = env.read(INFLUXDB_COARSE_BUCKET)
    if not env.is_set(INFLUXDB_URL):
        return None
    if coarse_bucket and not step_s:
        env.fault(STORE_COARSE_STEP_S, "INFLUXDB_COARSE_BUCKET requires one that is not 0")
    if coarse_bucket and coarse_bucket == env.read(INFLUXDB_BUCKET):
        env.fault(INFLUXDB_COARSE_BUCKET, "is INFLUXDB_BUCKET")
    reason = "INFLUXDB_URL requires it"
    return InfluxSettings(
        url=env.read(INFLUXDB_URL),
        token=env.require(INFLUXDB_TOKEN, reason),
        org=env.require(INFLUXDB_ORG, reason),
        bucket=env.require(INFLUXDB_BUCKET, reason),
        timeout_s=env.read(INFLUXDB_TIMEOUT_S),
        coarse_bucket=coarse_bucket,
        step_s=step_s,
    )
