"""The configuration of one run of the estimator: settings and options together, read again at each reload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..cli.model_options import chosen_detectors, model_settings
from ..common.environment import SettingsError, environment
from ..common.errors import UsageError
from ..nodemodel import ModelSettings
from ..oversubscriptioncomputation import STRATEGIES
from ..stability import StabilityDetector
from .options import EstimatorOptions
from .settings import EstimatorSettings, estimator_settings


@dataclass(frozen=True, slots=True)
class RunConfiguration:
    """The configuration of a run.

    Attributes
    ----------
    settings : EstimatorSettings
    model : ModelSettings
    detectors : mapping of resource name to StabilityDetector
    """

    settings: EstimatorSettings
    model: ModelSettings
    detectors: Mapping[str, StabilityDetector]

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
            "stability": self.settings.model.stability,
            "guards": self.model.guarded,
        }


def load_configuration(options: EstimatorOptions) -> RunConfiguration:
    """The configuration of a run, as environment and ``.env`` are now.

    Raises
    ------
    SettingsError
        Also for options that contradict the settings: a reload keeps the previous configuration then.
    """
    try:
        settings = estimator_settings(environment(), options.nodes, options.model)
        model = model_settings(settings.model, settings.strategies, settings.historical)
    except UsageError as error:
        raise SettingsError(str(error).splitlines()) from None
    return RunConfiguration(settings, replace(model, contention=settings.contention), chosen_detectors(settings.model))
