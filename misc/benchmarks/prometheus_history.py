"""Makes the history of a fleet for a Prometheus server: blocks of two hours, through ``promtool``."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.numerics import FloatArray

BLOCK_S = 7200
_DAY_S = 86400
_GB = 2**30
_CORES, _MEMORY_GB = 16, 256
_VCPUS, _VM_GB = 2, 6
_MODES = {"user": 0.85, "system": 0.15}
#: Share of the time that a CPU is idle in mode "iowait".
_IOWAIT = 0.02


@dataclass(frozen=True, slots=True)
class FleetHistory:
    """Nodes with VMs whose usage follows the day, with bursts.

    Attributes
    ----------
    nodes, vms : int
        Nodes, and VMs of each.
    interval_s : int
        Between two scrapes.
    blocks : range
        Numbers of blocks; block k begins at k * :data:`BLOCK_S`, Unix seconds.
    """

    nodes: int
    vms: int
    interval_s: int
    blocks: range

    @property
    def samples(self) -> int:
        """Number of samples."""
        series = self.nodes * (_CORES * (len(_MODES) + 2) + 4 + 4 * self.vms)
        return series * len(self.blocks) * BLOCK_S // self.interval_s

    def make(self, folder: Path, part: int = 0, parts: int = 1) -> Iterator[int]:
        """Make the blocks that the data folder of a server does not have yet; the number of each of them.

        Parameters
        ----------
        folder : Path
        part, parts : int
            A process of several makes one block of so many.

        Raises
        ------
        subprocess.CalledProcessError
        """
        vm_s, node_s = np.zeros(self.nodes * self.vms), np.zeros(self.nodes)
        for number in self.blocks:
            usage = self._usage(number)
            of_nodes = np.minimum(0.3 + usage.reshape(self.nodes, self.vms, -1).sum(axis=1), _CORES)
            if number % parts == part and not Path(folder, f"made-{number}").exists():
                self._make_block(
                    number,
                    folder,
                    vm_s[:, None] + self.interval_s * np.cumsum(usage, axis=1),
                    node_s[:, None] + self.interval_s * np.cumsum(of_nodes, axis=1),
                )
                yield number
            vm_s += self.interval_s * usage.sum(axis=1)
            node_s += self.interval_s * of_nodes.sum(axis=1)

    def _make_block(self, number: int, folder: Path, vm_s: FloatArray, node_s: FloatArray) -> None:
        # Complete or absent: what is interrupted goes on here.
        with tempfile.TemporaryDirectory(prefix="block.", dir=folder) as name:
            text, made = Path(name, "text"), Path(name, "made")
            with text.open("w") as file:
                file.writelines(self._lines(number, vm_s, node_s))
                file.write("# EOF\n")
            command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(text), str(made)]
            subprocess.run(command, check=True, capture_output=True)
            for block in [path for path in made.iterdir() if path.is_dir()]:
                shutil.move(block, folder / block.name)
            Path(folder, f"made-{number}").touch()

    def _times(self, number: int) -> FloatArray:
        return np.arange(number * BLOCK_S, (number + 1) * BLOCK_S, self.interval_s, dtype=np.float64)

    def _usage(self, number: int) -> FloatArray:
        """(nodes x vms, n) float64: cores that each VM uses."""
        fixed, times = np.random.default_rng(1), self._times(number)
        size = self.nodes * self.vms
        phase, level = fixed.uniform(0, 0.4, (size, 1)), fixed.lognormal(-2.5, 0.8, (size, 1))
        day = 1 + 0.8 * np.sin(2 * np.pi * (times / _DAY_S + phase))
        noise = np.random.default_rng(number).lognormal(-0.1, 0.5, (size, times.size))
        return np.minimum(_VCPUS * level * day * noise, 0.95 * _VCPUS)

    def _lines(self, number: int, vm_s: FloatArray, node_s: FloatArray) -> Iterator[str]:
        times = self._times(number)
        stamps = [f" {time_s:.0f}\n" for time_s in times.tolist()]
        elapsed_s = times - self.blocks.start * BLOCK_S + self.interval_s
        for i in range(self.nodes):
            yield from _node_lines(f"node{i:04}", stamps, node_s[i] / _CORES, elapsed_s, self.vms)
            for j in range(self.vms):
                yield from _vm_lines(f"node{i:04}", f"instance-{i:04}{j:04}", stamps, vm_s[i * self.vms + j])


def _node_lines(node: str, stamps: Sequence[str], busy_s: FloatArray, elapsed_s: FloatArray, vms: int) -> Iterator[str]:
    instance = f'instance="{node}:9100",job="node"'
    modes = {mode: share * busy_s for mode, share in _MODES.items()}
    modes["iowait"], modes["idle"] = _IOWAIT * (elapsed_s - busy_s), (1 - _IOWAIT) * (elapsed_s - busy_s)
    for mode, counter in modes.items():
        values = _with_stamps(counter, stamps)
        for cpu in range(_CORES):
            yield _series(f'node_cpu_seconds_total{{cpu="{cpu}",mode="{mode}",{instance}}} ', values)
    yield _series(f'node_uname_info{{nodename="{node}",{instance}}} 1', stamps)
    yield _series(f"node_memory_MemTotal_bytes{{{instance}}} {_MEMORY_GB * _GB}", stamps)
    free = (_MEMORY_GB - _VM_GB * vms // 2) * _GB - 2**26 * np.sin(elapsed_s / _DAY_S)
    yield _series(f"node_memory_MemAvailable_bytes{{{instance}}} ", _with_stamps(free, stamps))
    yield _series(f'libvirt_up{{instance="{node}:9177",job="libvirt"}} 1', stamps)


def _vm_lines(node: str, domain: str, stamps: Sequence[str], counter: FloatArray) -> Iterator[str]:
    labels = f'{{domain="{domain}",instance="{node}:9177",job="libvirt"}} '
    for name, value in (
        ("info_virtual_cpus", _VCPUS),
        ("info_maximum_memory_bytes", _VM_GB * _GB),
        ("memory_stats_unused_bytes", _VM_GB * _GB // 2),
    ):
        yield _series(f"libvirt_domain_{name}{labels}{value}", stamps)
    yield _series(f"libvirt_domain_info_cpu_time_seconds_total{labels}", _with_stamps(counter, stamps))


def _with_stamps(values: FloatArray, stamps: Sequence[str]) -> list[str]:
    return [f"{value:.2f}{stamp}" for value, stamp in zip(values.tolist(), stamps, strict=True)]


def _series(name: str, values: Sequence[str]) -> str:
    """The lines of a series."""
    return name.join(["", *values])
