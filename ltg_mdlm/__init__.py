"""A trainer for masked diffusion language models.  Plugins define masking, objective, schedule and conditioning."""

from ltg_mdlm.core.moved import keep_moved_names

__version__ = "0.2.0"

keep_moved_names()
