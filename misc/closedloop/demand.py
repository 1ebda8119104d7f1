"""The VMs that ask for a place: drawn, or those of a workload file, in the time of a demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from misc.fakeworkers.hosts import LEAST_MEMORY_KIB
from model.numerics import FloatArray
from model.simulation.draw import DrawSettings, SampledVm, draw_workload
from model.simulation.workload import Workload
from model.simulation.workload_file import WorkloadError, read_workload

_DAY_S = 86400.0
_DAYS = 7
_VMS = 150
#: vCPUs and their probabilities; MB per vCPU.
_SIZES, _OF_SIZE = (1, 2, 4, 8), (0.35, 0.35, 0.2, 0.1)
_MB_PER_VCPU = (2048, 4096)


def drawn_workload(nodes: int, per_node_hour: float, day_steps: int, steps: int, step_s: float, seed: int) -> Workload:
    """Draw more VMs than fit, in a time in which a day has few steps.

    Parameters
    ----------
    nodes : int
    per_node_hour : float
        VMs that arrive per node in 1/24 of a day.
    day_steps, steps : int
        Steps of a day, and of the whole.
    step_s : float
        Real seconds of a step.
    seed : int
    """
    rng = np.random.default_rng([seed, 23])
    pool = [_sampled_vm(rng, day_steps) for _ in range(_VMS)]
    settings = DrawSettings(nodes=nodes, days=steps / day_steps, per_node_hour=per_node_hour)
    drawn = draw_workload(pool, _DAY_S / day_steps, settings, seed)
    return in_real_time(drawn, steps, step_s)


def _sampled_vm(rng: np.random.Generator, day_steps: int) -> SampledVm:
    """A VM with a mean, a daily rhythm, and bursts; about one in four is idle or busy."""
    vcpu = float(rng.choice(_SIZES, p=_OF_SIZE))
    clock = np.arange(_DAYS * day_steps)
    rhythm = 1.0 + rng.uniform(0.0, 0.7) * np.sin(2 * np.pi * clock / day_steps + rng.normal(0.0, 1.0))
    cpu = rng.beta(1.2, 5.0) * rhythm * np.exp(0.4 * _autoregressive(rng, 0.9, clock.size))
    if rng.random() < 0.25:
        cpu *= np.repeat(rng.choice([0.1, 2.5], _DAYS * 6), -(-clock.size // (_DAYS * 6)))[: clock.size]
    memory = rng.beta(4, 4) * np.exp(0.1 * _autoregressive(rng, 0.99, clock.size))
    return SampledVm(
        vcpu,
        vcpu * float(rng.choice(_MB_PER_VCPU)),
        np.clip(cpu, 0.003, 1.0).astype(np.float32),
        np.clip(memory, 0.05, 0.97).astype(np.float32),
    )


def _autoregressive(rng: np.random.Generator, coefficient: float, steps: int) -> FloatArray:
    """(steps,) float64: a first-order autoregressive series of variance 1."""
    noise = rng.normal(0.0, np.sqrt(1.0 - coefficient**2), steps)
    series = np.empty(steps)
    level = rng.normal()
    for i, change in enumerate(noise.tolist()):
        level = coefficient * level + change
        series[i] = level
    return series


def given_workload(path: Path, steps: int, step_s: float) -> Workload:
    """Read a workload file; one of its steps takes ``step_s``, whatever it was.

    Raises
    ------
    WorkloadError
        When it cannot be read, or when a VM has a size that a simulated worker cannot have.
    """
    given = read_workload(path)
    for k, (vcpu, memory_mb) in enumerate(zip(given.vcpu.tolist(), given.memory_mb.tolist(), strict=True)):
        if vcpu != int(vcpu):
            raise WorkloadError(f"{path}: vms[{k}].vcpu: {vcpu:g} is not a whole number")
        if memory_mb < LEAST_MEMORY_KIB >> 10:
            raise WorkloadError(f"{path}: vms[{k}].memory_mb: {memory_mb:g} is below {LEAST_MEMORY_KIB >> 10}")
    return in_real_time(given, steps, step_s)


def in_real_time(workload: Workload, steps: int, step_s: float) -> Workload:
    """The same VMs, step by step, with steps of another length; it has ``steps`` steps."""
    # The middle of a step, so that no rounding moves a VM to another one.
    create = (workload.first_step.astype(np.float64) + 0.5) * step_s
    delete = (np.ceil(workload.delete_s / workload.step_s) - 0.5) * step_s
    return replace(workload, step_s=step_s, duration_s=steps * step_s, create_s=create, delete_s=delete)
