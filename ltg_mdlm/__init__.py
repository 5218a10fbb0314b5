"""Train masked language models from plugins: masking, objective, noise schedule and time conditioning."""

from ltg_mdlm.core.moved import keep_moved_names

__version__ = "0.1.0"

keep_moved_names()
