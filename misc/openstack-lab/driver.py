"""A host of nova's own fake driver, its size given by the environment, with cores for pinned VMs. nova loads it."""

from __future__ import annotations

import os
from typing import Any

from nova import objects  # type: ignore[import-not-found]  # in the lab's environment only
from nova.virt import fake  # type: ignore[import-not-found]

_CORES = int(os.environ["LAB_CORES"])
_DEDICATED = int(os.environ["LAB_DEDICATED"])
_SHARED = range(_CORES - _DEDICATED)
_PINNED = range(_CORES - _DEDICATED, _CORES)


class Host(fake.FakeDriverWithoutFakeNodes):  # type: ignore[misc]
    """The driver whose node keeps its identity over a restart."""

    vcpus = len(_SHARED)
    memory_mb = int(os.environ["LAB_MEMORY_MB"])
    local_gb = 10_000

    def get_available_resource(self, nodename: str) -> dict[str, Any]:
        """As the fake driver's; with a NUMA cell that has the dedicated cores, since nova pins VMs to these."""
        resources: dict[str, Any] = super().get_available_resource(nodename)
        if _DEDICATED:
            cell = objects.NUMACell(
                id=0,
                cpuset=set(_SHARED),
                pcpuset=set(_PINNED),
                memory=self.memory_mb,
                cpu_usage=0,
                memory_usage=0,
                pinned_cpus=set(),
                siblings=[{cpu} for cpu in range(_CORES)],
                mempages=[objects.NUMAPagesTopology(size_kb=4, total=self.memory_mb * 256, used=0, reserved=0)],
                network_metadata=objects.NetworkMetadata(physnets=set(), tunneled=False),
                socket=0,
            )
            resources["numa_topology"] = objects.NUMATopology(cells=[cell])._to_json()
        return resources

    def update_provider_tree(self, provider_tree: Any, nodename: str, allocations: Any = None) -> None:
        """As the fake driver's, with an inventory of the dedicated cores."""
        super().update_provider_tree(provider_tree, nodename, allocations)
        if _DEDICATED:
            inventory = dict(provider_tree.data(nodename).inventory)
            inventory["PCPU"] = {**inventory["VCPU"], "total": _DEDICATED, "max_unit": _DEDICATED, "reserved": 0}
            inventory["PCPU"]["allocation_ratio"] = 1.0
            provider_tree.update_inventory(nodename, inventory)
