"""What one run of the estimator is configured with: settings and options together, read again at each reload."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cli.model_options import chosen_detectors, chosen_strategies, model_settings
from ..common.environment import SettingsError, environment
from ..common.errors import UsageError
from ..nodemodel import ModelSettings
from ..oversubscriptioncomputation import STRATEGIES
from ..stability import StabilityDetector
from .options import EstimatorOptions
from .settings import EstimatorSettings, estimator_settings

#: The strategy that is computed and published by default.
_DEFAULT_STRATEGY = "scroogevm"


@dataclass(frozen=True, slots=True)
class RunConfiguration:
    """The configuration of a run.

    Attributes
    ----------
    settings : EstimatorSettings
    model : ModelSettings
    detectors : dict of resource name to StabilityDetector
    stability : str
        The name of the detectors.
    """

    settings: EstimatorSettings
    model: ModelSettings
    detectors: dict[str, StabilityDetector]
    stability: str

    @property
    def of_checkpoints(self) -> dict[str, Any]:
        """The part that the state of the models depends on."""
        return {
            "slice_s": self.settings.calendar.slice_s,
            "positions": self.settings.calendar.positions,
            "historical": self.model.historical,
            "strategies": {name: STRATEGIES[name].state_fields for name in self.model.strategies},
            "published": self.model.strategies[0],
            "percentiles": [self.model.cpu.percentile, self.model.mem.percentile],
            "aggregation": self.model.cpu.aggregation,
            "risks": [self.model.cpu.risk, self.model.mem.risk],
            "stability": self.stability,
        }


def load_settings(nodes: tuple[str, ...]) -> EstimatorSettings:
    """The settings, as environment and ``.env`` are now.

    Parameters
    ----------
    nodes : tuple of str
        Instead of those of the settings, if not empty.

    Raises
    ------
    SettingsError
    """
    settings = estimator_settings(environment(), nodes)
    files = {"STATE_ENDPOINT": settings.status.path, "SCHED_MEMORY_PATH": settings.checkpoint_path}
    if faults := [f"{key}: {path} is a folder, not a file" for key, path in files.items() if _is_folder(path)]:
        raise SettingsError(faults)
    return settings


def load_configuration(options: EstimatorOptions) -> RunConfiguration:
    """The configuration of a run, as environment and ``.env`` are now.

    Raises
    ------
    SettingsError
        Also for model options that are wrong: a reload keeps the previous configuration then.
    """
    settings = load_settings(options.nodes)
    strategy = options.model.strategy
    try:
        strategies = chosen_strategies(_DEFAULT_STRATEGY if strategy is None else strategy)
        model = model_settings(options.model, strategies, settings.historical)
        detectors = chosen_detectors(options.model)
    except UsageError as error:
        raise SettingsError(str(error).splitlines()) from None
    return RunConfiguration(settings, model, detectors, options.model.stability)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path.expanduser())  # noqa: PTH112  # Path.is_dir raises where a folder above is not readable
