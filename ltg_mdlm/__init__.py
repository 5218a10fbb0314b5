"""Train masked language models from plugins: masking, objective, noise schedule and time conditioning."""

__version__ = "0.1.0"
