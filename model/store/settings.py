"""Settings of the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..common.environment import Environment


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
