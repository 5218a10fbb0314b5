"""Sampling: text from a trained model, by masked diffusion or from left to right."""

from ltg_mdlm.generate.rule import SamplingRule
from ltg_mdlm.generate.sampling import Sample, generate

__all__ = ["Sample", "SamplingRule", "generate"]
