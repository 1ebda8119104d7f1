"""The state of each node's resource provider, for ``--check``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...slices import CPU, MEMORY, Resource
from ..settings import ALL_NODES, PlacementSettings
from ..status_file import PublishedNode
from .client import PlacementClient, PlacementError
from .providers import ProviderMap, SkippedProviders
from .ratio import MEMORY_MB, VCPU, PartUnknown, ResourceCapacity, dedicated_of, free_of_part, same_ratio
from .written import WrittenRecord, read_written

_RESOURCES: tuple[tuple[str, Resource], ...] = ((VCPU, CPU), (MEMORY_MB, MEMORY))


def check_placement(
    settings: PlacementSettings, nodes: Sequence[str], published: Mapping[str, PublishedNode]
) -> Iterator[tuple[str, bool, str]]:
    """Log in and read the provider of every node, without writing; a row for the service, and one per node.

    Parameters
    ----------
    settings : PlacementSettings
    nodes : sequence of str
        The nodes of the estimator.
    published : mapping of node to PublishedNode
        What was published last.

    Yields
    ------
    (str, bool, str)
        Target, whether its ratio can be kept, and what was found.
    """
    listed = [node for node in settings.providers if node != ALL_NODES]
    if ALL_NODES in settings.providers:
        listed += [node for node in nodes if node not in settings.providers]
    try:
        client, providers = _open(settings, listed)
        skipped = SkippedProviders(settings.skips, client)
        skipped.refresh()
    except PlacementError as error:
        yield "placement", False, str(error)
        return
    try:
        written = read_written(settings.state_path) if settings.state_path else {}
    except (OSError, ValueError) as error:
        yield "placement", False, f"{settings.state_path}: {error}"
        written = {}
    for node in listed:
        try:
            ok, message = _check_node(node, published.get(node), client, providers, skipped, written)
        except PlacementError as error:
            ok, message = False, str(error)
        if node not in nodes:
            ok, message = False, f"{message}; the node is not in SCHED_NODES"
        yield f"placement {node}", ok, message
    yield "placement", True, f"OpenStack Placement, resource providers: {len(listed)}"


def present_ratios(settings: PlacementSettings, nodes: Sequence[str]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The ratios of the providers of nodes now, by node and resource name, and why some are missing.

    Parameters
    ----------
    settings : PlacementSettings
    nodes : sequence of str
    """
    ratios: dict[str, dict[str, float]] = {}
    problems: list[str] = []
    try:
        client, providers = _open(settings, nodes)
    except PlacementError as error:
        return {}, [str(error)]
    for node in nodes:
        if node not in providers:
            continue
        try:
            inventories = client.inventories(providers.uuid_of(node))["inventories"]
        except PlacementError as error:
            problems.append(f"{node}: {error}")
            continue
        ratios[node] = {
            resource.name: float(inventories[resource_class]["allocation_ratio"])
            for resource_class, resource in _RESOURCES
            if resource_class in inventories
        }
    return ratios, problems


def _open(settings: PlacementSettings, nodes: Sequence[str]) -> tuple[PlacementClient, ProviderMap]:
    """Log in, and read the list of providers if any of the nodes is found in it."""
    client = PlacementClient(settings)
    providers = ProviderMap(settings.providers, client)
    client.check_access()
    providers.refresh([node for node in nodes if node in providers])
    return client, providers


def _check_node(
    node: str,
    published: PublishedNode | None,
    client: PlacementClient,
    providers: ProviderMap,
    skipped: SkippedProviders,
    written: Mapping[str, WrittenRecord],
) -> tuple[bool, str]:
    provider = providers.uuid_of(node)
    name = providers.name_of(node)
    if reason := skipped.reason(provider):
        return True, f"{name}: left alone, {reason}"
    inventories, usages = client.inventories(provider)["inventories"], client.usages(provider)["usages"]
    record = written.get(provider, WrittenRecord())
    parts, ok = [], True
    for resource_class, resource in _RESOURCES:
        if (inventory := inventories.get(resource_class)) is None:
            ok = False
            parts.append(f"no {resource_class}")
            continue
        text, problem = _describe(resource_class, resource, inventory, inventories, published)
        ok = ok and not problem
        used = f"used {usages.get(resource_class, 0):g}"
        if published is not None and (booked := published.of(resource)[1].booked_now) is not None:
            used += f", booked {booked:.0f}"
        ratio = f"ratio {inventory['allocation_ratio']:.6g} {_writer(resource_class, inventory, record)}"
        parts.append(f"{text}, {ratio}, {used}{f', {problem}' if problem else ''}")
    return ok, f"{name}: {'; '.join(parts)}"


def _describe(
    resource_class: str,
    resource: Resource,
    inventory: Mapping[str, Any],
    inventories: Mapping[str, Any],
    published: PublishedNode | None,
) -> tuple[str, str]:
    """The size of an inventory beside that of the node, and why its ratio is not kept."""
    config = None if published is None else published.of(resource)[1].config
    unit = "cores" if resource is CPU else "MB"
    text = (
        f"{resource_class} {inventory['total']:g} of {config:.6g} {unit}"
        if config
        else f"{resource_class} {inventory['total']:g}"
    )
    dedicated = dedicated_of(resource_class, inventories)
    if dedicated:
        text += f", PCPU {dedicated['total']:g}"
    if inventory["reserved"]:
        text += f", reserved {inventory['reserved']:g}"
    if inventory["total"] <= inventory["reserved"]:
        return text, "reserved entirely"
    try:
        if config:
            free_of_part(ResourceCapacity(0.0, 0.0, config), inventory, dedicated)
    except PartUnknown as unknown:
        return text, str(unknown)
    return text, ""


def _writer(resource_class: str, inventory: Mapping[str, Any], record: WrittenRecord) -> str:
    ours = record.ratios.get(resource_class)
    if ours is None:
        return "not by ScroogeVM"
    if same_ratio(inventory["allocation_ratio"], ours):
        since = f", {time.strftime('%F %H:%M', time.localtime(record.written_s))}" if record.written_s else ""
        return f"by ScroogeVM{since}"
    return f"by another process (ScroogeVM: {ours:g})"
