"""A plugin for tests: time conditionings whose embedding is their own, not all of which can travel with an export."""

from typing import Literal

from ltg_mdlm_plugins.conditioning import Sigma
from polynomial_embedding import Forgetful, Polynomial, Scaled
from torch import nn

from ltg_mdlm.api import Field, Plugin, PluginOptions, hookimpl
from ltg_mdlm.model.transformer import TimeEmbedding


class BesideThePlugin(TimeEmbedding):
    """In a file that imports the plugin interface."""


EMBEDDINGS = {
    "polynomial": Polynomial,
    "forgetful": Forgetful,
    "scaled": lambda cond_dim: Scaled(cond_dim, 2.0),
    "beside_the_plugin": BesideThePlugin,
    "from_torch": lambda cond_dim: nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, cond_dim)),
}


class Options(PluginOptions):
    """Which embedding."""

    embedding: Literal[tuple(EMBEDDINGS)] = Field("polynomial", description="a name in EMBEDDINGS")


class OwnEmbedding(Sigma):
    """The value of sigma, embedded in another way."""

    def __init__(self, name):
        super().__init__()
        self._name = name

    def embedding(self, cond_dim):
        return EMBEDDINGS[self._name](cond_dim)


class Embedding(Plugin[Options]):
    """Fills the slot of the time conditioning."""

    options_model = Options

    @hookimpl
    def ltg_mdlm_time_conditioning(self):
        return OwnEmbedding(self.options.embedding)
