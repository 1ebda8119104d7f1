"""Line protocol: measurement ``node`` with tag ``url``, measurement ``domain`` with tags ``domain`` and ``url``.

The counts of a fleet are the measurement ``fleet`` with the tag ``master``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from ..samples import ScrapeSample
from .base import FleetRow
from .influxdb_queries import INTEGER_FIELDS

_TAG_ESCAPES = str.maketrans({",": "\\,", "=": "\\=", " ": "\\ "})


def encode_lines(sample: ScrapeSample, excluded: Collection[tuple[str, str]]) -> list[str]:
    """Lines of a sample; names that :func:`is_tag` rejects and values that are not finite are omitted.

    Parameters
    ----------
    sample : ScrapeSample
    excluded : collection of (measurement, field)
        Fields that the bucket does not accept.
    """
    url = _escape(sample.node)
    lines = []
    for name, fields in sample.domains.items():
        values = _encode_fields("domain", fields, excluded)
        if values and is_tag(name):
            lines.append(f"domain,domain={_escape(name)},url={url} {values} {sample.time_ms}")
    values = _encode_fields("node", sample.fields, excluded)
    if values and is_tag(sample.node):
        lines.append(f"node,url={url} {values} {sample.time_ms}")
    return lines


def encode_fleet(row: FleetRow) -> str:
    """The line of the counts of a master, whose name is a tag; names of fields are constants of the program."""
    return f"fleet,master={_escape(row.master)} {_encode_fields('fleet', row.counts, ())} {row.time_ms}"


def is_tag(name: str) -> bool:
    """Whether a tag can hold a name: not empty, no backslash at the end, no line break."""
    return bool(name) and not name.endswith("\\") and "\n" not in name and "\r" not in name


def remove_field(line: str, measurement: str, field: str) -> str:
    """A line without a field of a measurement; empty when no field is left."""
    if not line.startswith(f"{measurement},"):
        return line
    # Neither the fields nor the time contain blanks: all values are numbers.
    head, values, time_ms = line.rsplit(" ", 2)
    kept = [value for value in values.split(",") if not value.startswith(f"{field}=")]
    return f"{head} {','.join(kept)} {time_ms}" if kept else ""


def _encode_fields(measurement: str, fields: Mapping[str, float], excluded: Collection[tuple[str, str]]) -> str:
    return ",".join(
        f"{name}={int(value)}i" if name in INTEGER_FIELDS else f"{name}={value!r}"
        for name, value in fields.items()
        if math.isfinite(value) and not (excluded and (measurement, name) in excluded)
    )


def _escape(name: str) -> str:
    return name.translate(_TAG_ESCAPES)
