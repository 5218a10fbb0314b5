"""Everything a plugin may import: the hook markers, the data that passes between components, and their base classes.

Shapes are suffixes: B rows, T tokens per row, N supervised positions, V vocabulary, R rows of the global batch,
D width, K loss groups.  `gamma` is a row's mask rate; t runs from 0 (clean, gamma = 0) to 1 (all masked, gamma = 1).

Hooks register components once, at start-up; the training loop then calls only methods of the components.  Methods take
dataclasses, so that a new field never breaks a plugin.
"""

from pydantic import Field

from ltg_mdlm.core.batch import (
    IGNORE,
    Batch,
    Corrupted,
    Noise,
    Observation,
    Step,
    Supervised,
    labels_for,
    realised_rate,
)
from ltg_mdlm.core.components import (
    Component,
    CorpusStatistics,
    MaskingStrategy,
    Mode,
    NoiseSchedule,
    Objective,
    Plugin,
    PluginOptions,
    RowMode,
    RunContext,
    TimeConditioning,
)
from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.host.hookspecs import API_VERSION, hookimpl, hookspec

__all__ = [
    "API_VERSION",
    "IGNORE",
    "Batch",
    "Component",
    "CorpusStatistics",
    "Corrupted",
    "Field",
    "MaskingStrategy",
    "Mode",
    "Noise",
    "NoiseSchedule",
    "Objective",
    "Observation",
    "Plugin",
    "PluginOptions",
    "RowMode",
    "RunConfig",
    "RunContext",
    "Step",
    "Supervised",
    "TimeConditioning",
    "UserError",
    "hookimpl",
    "hookspec",
    "labels_for",
    "realised_rate",
]
