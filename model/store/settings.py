"""Settings of the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..common.environment import Environment
from ..common.settings import Section, ascii_token
from ..common.targets import http_url

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
    2 * 86400.0,
    3600,
    1e12,
    "Seconds for which the embedded store keeps every sample. Of older ones it keeps one per STORE_COARSE_STEP_S.",
)
STORE_COARSE_STEP_S = _STORE.whole(
    "STORE_COARSE_STEP_S",
    300,
    0,
    3600,
    "Of samples older than STORE_FULL_S, one per so many seconds is kept, in which usage is the largest. "
    "SCHED_SCOPE_SLICE_S should be a multiple of it. 0 keeps every sample for STORE_RETENTION_S.",
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
class StoreSettings:
    """Where samples are kept: in InfluxDB or in the embedded store.

    Attributes
    ----------
    influx : InfluxSettings or None
    path : Path
        File of the embedded store.
    retention_s : float
        For how long the embedded store keeps a sample.
    thinning : Thinning or None
        Which samples the embedded store thins; None: none.
    """

    influx: InfluxSettings | None
    path: Path
    retention_s: float
    thinning: Thinning | None = None


def status_path(env: Environment) -> Path:
    """Path of the status file."""
    path = Path(env.read(STATE_ENDPOINT))
    if path.is_dir():
        env.fault(STATE_ENDPOINT, f"{path} is a folder, not a file")
    return path


def store_settings(env: Environment) -> StoreSettings:
    """The store that all three daemons use."""
    beside = status_path(env).parent / "store.sqlite"
    path = Path(env.read(STORE_PATH, str(beside)))
    if path.is_dir():
        env.fault(STORE_PATH, f"{path} is a folder, not a file")
    step_s, full_s = env.read(STORE_COARSE_STEP_S), env.read(STORE_FULL_S)
    return StoreSettings(
        influx=_influx(env, step_s),
        path=path,
        retention_s=env.read(STORE_RETENTION_S),
        thinning=Thinning(full_s, step_s) if step_s else None,
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
