"""The module that embeds conditioning values in an exported model; replaced if a plugin brings its own."""

from __future__ import annotations

from .transformer import TimeEmbedding

EMBEDDING = TimeEmbedding
