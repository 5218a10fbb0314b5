"""The Python API of trained models: open a model, score texts, draw samples.

from ltg_mdlm.inference import SamplingRule, generate, open_model

samples = generate(open_model("runs/mine"), SamplingRule(sampler="confidence", steps=8), prompt="the dog")
"""

from ltg_mdlm.inference.sampling import Sample, generate
from ltg_mdlm.inference.sampling_rule import SamplingRule, plugin_orders
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.inference.texts import Text, TextScore
from ltg_mdlm.inference.trained_model import TrainedModel, open_model

__all__ = [
    "LikelihoodScorer",
    "Sample",
    "SamplingRule",
    "ScoringRule",
    "Text",
    "TextScore",
    "TrainedModel",
    "generate",
    "open_model",
    "plugin_orders",
]
