"""The plugin API: hook markers, base classes of components, and the data that passes between them.

Plugins import from here only.  Hooks create components once, at start-up; the training loop then calls only methods of
the components.

Names of tensors end in their shape: B rows of a micro-batch, T tokens per row, N supervised positions, R rows of the
global batch, V token types, D width, K loss groups.  gamma is the mask rate of a row; diffusion time t runs from 0
(clean, gamma = 0) to 1 (all masked, gamma = 1).
"""

from pydantic import Field

from ltg_mdlm.core.batch import (
    IGNORE,
    Batch,
    Corrupted,
    Noise,
    Observation,
    Step,
    StepEnd,
    Supervised,
    Visibility,
    labels_for,
    realised_rate,
)
from ltg_mdlm.core.components import (
    Component,
    CorpusStatistics,
    CorpusView,
    LogitsOf,
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
from ltg_mdlm.core.config import OptimizerConfig, RunConfig
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.optimizer import OptimizedParameter, Optimizer, ParameterGroup, ParameterKind
from ltg_mdlm.host.hookspecs import API_VERSION, hookimpl, hookspec
from ltg_mdlm.model.visibility import block_of, block_visibility

__all__ = [
    "API_VERSION",
    "IGNORE",
    "Batch",
    "Component",
    "CorpusStatistics",
    "CorpusView",
    "Corrupted",
    "Field",
    "LogitsOf",
    "MaskingStrategy",
    "Mode",
    "Noise",
    "NoiseSchedule",
    "Objective",
    "Observation",
    "OptimizedParameter",
    "Optimizer",
    "OptimizerConfig",
    "ParameterGroup",
    "ParameterKind",
    "Plugin",
    "PluginOptions",
    "RowMode",
    "RunConfig",
    "RunContext",
    "Step",
    "StepEnd",
    "Supervised",
    "TimeConditioning",
    "UserError",
    "Visibility",
    "block_of",
    "block_visibility",
    "hookimpl",
    "hookspec",
    "labels_for",
    "realised_rate",
]
