"""Reads lists of nova's instances (JSON or CSV) as arrivals."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from misc.tracesources.grid import ConversionError
from misc.tracesources.tables import ArrivalRows, table_rows
from misc.tracesources.textfiles import lines_of, parsed_number
from model.common.json_text import not_json
from model.simulation.arrivals import ArrivalList

_DAY_S = 86400.0
#: Names of a column, best first; those of files are compared in lower case, with _ for what is no letter or digit.
_NAMES = ("uuid", "id", "name", "display_name", "hostname")
_CREATED = ("created_at", "created", "launched_at")
#: ``deleted`` of nova's table is a number, and comes last.
_DELETED = ("deleted_at", "terminated_at", "os_srv_usg_terminated_at", "deleted")
_VCPUS = ("vcpus", "vcpu", "flavor_vcpus")
_MEMORY = ("memory_mb", "ram", "ram_mb", "flavor_ram")
_FLAVOR = ("flavor", "flavor_name", "flavor_original_name", "flavor_id", "instance_type")
_FLAVOR_NAMES = ("name", "original_name", "id")
#: As SQL clients and openstack write NULL.
_NULL = ("", "null", "none", "\\n", "n/a")

_NUMBER = re.compile(r"\d+(\.\d*)?")
#: The year 5138: a larger number is in milliseconds.
_LATEST_S = 1e11

#: Name or ID of a flavour to vCPUs and MB.
Flavors = Mapping[str, tuple[float, float]]


def read_nova_instances(path: Path, flavors: Flavors | None = None) -> ArrivalList:
    """Read instances; those that are not deleted stay. Time 0 is the midnight (UTC) before the first creation.

    Parameters
    ----------
    path : Path
        JSON (a list of objects, or the API's ``{"servers": [...]}``) or CSV with a header.
    flavors : mapping, optional
        Sizes of flavours that the list only names.

    Raises
    ------
    ConversionError
    """
    rows = ArrivalRows(path)
    for place, fields in _records(path):
        name = _first(fields, _NAMES)
        created, deleted = _first(fields, _CREATED), _first(fields, _DELETED[:-1])
        if not any(column in fields for column in _DELETED[:-1]):
            # Where there is no other column: a time, or a mark of instances that exist.
            deleted = _first(fields, _DELETED[-1:])
            if deleted is not None and str(deleted).strip().lower() in ("0", "false"):
                deleted = None
        if created is None:
            raise ConversionError(f"{place}: no time of creation ({', '.join(_CREATED)})")
        create_s = _time(created, f"{place}: creation")
        delete_s = math.inf if deleted is None else _time(deleted, f"{place}: deletion")
        rows.add(place, "" if name is None else str(name), (create_s, delete_s), _size(fields, flavors or {}, place))
    start_s = rows.first_s // _DAY_S * _DAY_S if math.isfinite(rows.first_s) else 0.0
    return rows.arrivals(start_s, origin_s=start_s)


def read_nova_flavors(path: Path) -> dict[str, tuple[float, float]]:
    """Read the sizes of flavours, as ``openstack flavor list --all -f json`` gives them, by name and by ID.

    Raises
    ------
    ConversionError
    """
    flavors: dict[str, tuple[float, float]] = {}
    for place, fields in _records(path):
        size = _size(fields, {}, place)
        names = [str(fields[column]) for column in _FLAVOR_NAMES if fields.get(column) is not None]
        if not names:
            raise ConversionError(f"{place}: the flavour has no name")
        flavors |= dict.fromkeys(names, size)
    if not flavors:
        raise ConversionError(f"{path}: no flavour")
    return flavors


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and fields of each record; NULL is None."""
    first = next(lines_of(path), (1, b""))[1].lstrip()
    if first[:1] in (b"[", b"{"):
        yield from _json_records(path)
        return
    for row in table_rows(path, ()):
        yield row.place, {_column(name): _known(text) for name, text in row.fields.items()}


def _json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    data = b"\n".join(line for _, line in lines_of(path))
    try:
        raw = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise ConversionError(f"{path}: {not_json(error, data)}") from None
    except (UnicodeDecodeError, RecursionError):
        raise ConversionError(f"{path}: not a list of objects") from None
    if isinstance(raw, dict):
        raw = raw.get("servers", raw.get("flavors"))
    if not isinstance(raw, list):
        raise ConversionError(f"{path}: not a list of objects")
    for k, record in enumerate(raw):
        if not isinstance(record, dict):
            raise ConversionError(f"{path}: [{k}]: not an object")
        yield f"{path}: [{k}]", {_column(name): _known(value) for name, value in record.items()}


def _column(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _known(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in _NULL else value


def _first(fields: Mapping[str, Any], columns: Sequence[str]) -> Any:
    return next((fields[column] for column in columns if fields.get(column) is not None), None)


def _time(value: Any, place: str) -> float:
    """Unix seconds, or ISO 8601, by default in UTC."""
    text = str(value).strip()
    try:
        if _NUMBER.fullmatch(text):
            stamp_s = float(text)
        else:
            # Python 3.10 does not accept the Z.
            stamp = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
            stamp_s = (stamp if stamp.tzinfo else stamp.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        stamp_s = math.nan
    if not 0 <= stamp_s <= _LATEST_S:
        raise ConversionError(f"{place}: {text[:40]!r} is not a time")
    return stamp_s


def _size(fields: Mapping[str, Any], flavors: Flavors, place: str) -> tuple[float, float]:
    vcpus, memory = _first(fields, _VCPUS), _first(fields, _MEMORY)
    flavor = _first(fields, _FLAVOR)
    if isinstance(flavor, dict):
        # Compute API from microversion 2.47 on: the flavour itself.
        flavor = {_column(name): value for name, value in flavor.items()}
        vcpus, memory = vcpus or _first(flavor, _VCPUS), memory or _first(flavor, _MEMORY)
        flavor = _first(flavor, ("original_name", "name", "id"))
    if vcpus is not None and memory is not None:
        return parsed_number(str(vcpus), f"{place}: vCPUs"), parsed_number(str(memory), f"{place}: memory")
    if flavor is None:
        raise ConversionError(f"{place}: neither vCPUs and memory ({', '.join((*_VCPUS, *_MEMORY))}) nor a flavour")
    if str(flavor) not in flavors:
        raise ConversionError(f"{place}: the size of flavour {flavor} is unknown")
    return flavors[str(flavor)]
