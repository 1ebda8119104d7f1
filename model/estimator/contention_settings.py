"""Settings of contention: from when on VMs suffer."""

from __future__ import annotations

from typing import Any

from ..common.environment import Environment
from ..common.settings import Section, Setting
from ..contention import ContentionSettings

_DEFAULTS = ContentionSettings()
_SECTION = Section("Contention (scroogevm.py)")

VM_SOME = _SECTION.number(
    "SCHED_CONTENTION_VM_SOME",
    _DEFAULTS.vm_some,
    0,
    1,
    "A VM waits when it waits for CPU longer than this share of the time in which it could run. VMware's guidance for "
    "CPU Ready: below 0.05 is fine.",
)
VM_HIGH = _SECTION.number(
    "SCHED_CONTENTION_VM_HIGH",
    _DEFAULTS.vm_high,
    0,
    1,
    "A VM suffers when it waits longer than this share: its node publishes 0. VMware's guidance: above 0.10 is "
    "critical; alerts in use begin at 0.10 for 20 minutes.",
)
SAMPLES = _SECTION.number(
    "SCHED_CONTENTION_SAMPLES",
    _DEFAULTS.samples,
    0,
    0.99,
    "Share of the samples of a slice that may exceed a threshold of contention.",
)
PSI_CPU = _SECTION.number(
    "SCHED_CONTENTION_PSI_CPU",
    _DEFAULTS.psi_cpu,
    0,
    1,
    "A node on which tasks wait for CPU in more than this share of the time (pressure stall information) is offered no "
    "more than before. Quotas raise this figure, too, so that it alone never closes a node.",
)
PSI_MEMORY = _SECTION.number(
    "SCHED_CONTENTION_PSI_MEMORY",
    _DEFAULTS.psi_memory,
    0,
    1,
    "A node that is stalled for memory in more than this share of the time publishes 0 for memory; from a fifth of it "
    "on it is offered no more than before.",
)
SWAP_IN = _SECTION.number(
    "SCHED_CONTENTION_SWAP_IN",
    _DEFAULTS.swap_in,
    0,
    10**9,
    "A node that swaps in more pages per second publishes 0 for memory; from a tenth of it on it is offered no more "
    "than before.",
)
SLICES = _SECTION.whole(
    "SCHED_CONTENTION_SLICES",
    _DEFAULTS.slices,
    1,
    1000,
    "Contention below the high thresholds counts when it was seen in so many of the last SCHED_CONTENTION_WINDOW "
    "slices; contention ends after so many slices without it.",
)
WINDOW = _SECTION.whole("SCHED_CONTENTION_WINDOW", _DEFAULTS.window, 1, 1000, "See SCHED_CONTENTION_SLICES.")
CHECK_S = _SECTION.number(
    "SCHED_CONTENTION_CHECK_S",
    30.0,
    0,
    10**6,
    "Within a slice, the newest samples of each node are read every so many seconds; where VMs suffer, the published "
    "figure falls to 0 until the slice ends. 0 looks at the ends of slices only.",
)


def _patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(pattern, str) and pattern for pattern in value):
        raise ValueError('is not a list of patterns such as ["instance-0000*"]')
    return tuple(value)


CAPPED: Setting[tuple[str, ...]] = _SECTION.json(
    "SCHED_CONTENTION_CAPPED",
    (),
    _patterns,
    "Names of VMs with a CPU quota, a JSON list of patterns with * and ?. A VM at its quota waits, too, which is no "
    "contention. A single one on a calm node is recognised without this.",
)


def contention_settings(env: Environment) -> ContentionSettings:
    """Read the thresholds; contradictions are faults of the environment."""
    settings = ContentionSettings(
        vm_some=env.read(VM_SOME),
        vm_high=env.read(VM_HIGH),
        samples=env.read(SAMPLES),
        psi_cpu=env.read(PSI_CPU),
        psi_memory=env.read(PSI_MEMORY),
        swap_in=env.read(SWAP_IN),
        slices=env.read(SLICES),
        window=env.read(WINDOW),
        capped=env.read(CAPPED),
    )
    if settings.vm_some > settings.vm_high and not env.is_faulty(VM_SOME, VM_HIGH):
        env.fault(VM_SOME, f"{settings.vm_some:g} is above SCHED_CONTENTION_VM_HIGH, {settings.vm_high:g}")
    if settings.slices > settings.window and not env.is_faulty(SLICES, WINDOW):
        env.fault(SLICES, f"{settings.slices} is above SCHED_CONTENTION_WINDOW, {settings.window}")
    return settings
