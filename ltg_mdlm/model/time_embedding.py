"""The module that embeds conditioning values in an exported model; a plugin's own file takes the place of this one."""

from __future__ import annotations

from .transformer import TimeEmbedding

EMBEDDING = TimeEmbedding
