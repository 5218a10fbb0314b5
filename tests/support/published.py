"""Models with the modules of the published code bases, under their names, and the files that these save of them.

Only what a checkpoint shows is here: modules, parameters, buffers, in their order; no forward pass.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from pathlib import Path, PosixPath
from typing import Any

import torch
from support.corpora import VOCAB, small_tokenizer
from torch import Tensor, nn

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "position_bucket_size": 32,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
COND_DIM = 16


def published_buckets(max_positions: int, bucket_size: int) -> Tensor:
    """The buffer [P, P] of published files, whose code computes it in float32.

    There the ceiling of an integer depends on how the processor rounds a logarithm.  Float64 with a margin gives the
    result of the formula on every processor.
    """
    place = torch.arange(max_positions)
    distance = place[:, None] - place[None, :]
    middle = bucket_size // 2
    size = distance.abs().clamp(min=middle).double()
    scale = torch.log(size / middle) / math.log((max_positions - 1) / middle) * (middle - 1)
    far = torch.ceil(scale - 1e-9).long() + middle
    return torch.where(distance.abs() <= middle, distance, far * distance.sign()) + bucket_size - 1


class Attention(nn.Module):
    def __init__(self, width: int, sizes: dict[str, Any], saves_positions: bool) -> None:
        super().__init__()
        self.in_proj_qk = nn.Linear(width, 2 * width)
        self.in_proj_vg = nn.Linear(width, 2 * width)
        self.out_proj = nn.Linear(width, width)
        self.pre_layer_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.post_layer_norm = nn.LayerNorm(width, elementwise_affine=False)
        buckets = published_buckets(sizes["max_position_embeddings"], sizes["position_bucket_size"])
        self.register_buffer("position_indices", buckets, persistent=saves_positions)


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int, second_names: bool) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, elementwise_affine=False),
            nn.Linear(width, 2 * inner, bias=False),
            nn.Identity(),
            nn.LayerNorm(inner, elementwise_affine=False),
            nn.Linear(inner, width, bias=False),
            nn.Dropout(),
        )
        if second_names:
            self.layer_norm1, self.linear1 = self.mlp[0], self.mlp[1]
            self.layer_norm2, self.linear2 = self.mlp[3], self.mlp[4]


class Embedding(nn.Module):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width = sizes["hidden_size"]
        self.word_embedding = nn.Embedding(sizes["vocab_size"], width)
        self.word_layer_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.relative_embedding = nn.Parameter(torch.empty(2 * sizes["position_bucket_size"] - 1, width))
        self.relative_layer_norm = nn.LayerNorm(width)


class Head(nn.Module):
    def __init__(self, sizes: dict[str, Any], embedding: nn.Parameter) -> None:
        super().__init__()
        width = sizes["hidden_size"]
        self.nonlinearity = nn.Sequential(
            nn.LayerNorm(width, elementwise_affine=False),
            nn.Linear(width, width),
            nn.GELU(),
            nn.LayerNorm(width, elementwise_affine=False),
            nn.Dropout(),
            nn.Linear(width, sizes["vocab_size"]),
        )
        self.nonlinearity[-1].weight = embedding


class DepthWeightedAverage(nn.Module):
    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.alphas = nn.ParameterList([nn.Parameter(torch.zeros(i + 2)) for i in range(blocks)])


class TimeEmbedding(nn.Module):
    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))


class Layers(nn.Module):
    """The layers; `kind` is freq, freq_unconditioned, gpt_bert or gpt_bert_plain."""

    def __init__(self, sizes: dict[str, Any], kind: str, saves_positions: bool = True) -> None:
        super().__init__()
        width, count = sizes["hidden_size"], sizes["num_hidden_layers"]
        second_names = kind.startswith("freq")
        self.attention_layers = nn.ModuleList(Attention(width, sizes, saves_positions) for _ in range(count))
        self.mlp_layers = nn.ModuleList(
            FeedForward(width, sizes["intermediate_size"], second_names) for _ in range(count)
        )
        if kind == "freq":
            self.adaLN_modulations = nn.ModuleList(nn.Linear(COND_DIM, 6 * width) for _ in range(count))
        if kind == "gpt_bert":
            self.dwa_modules = DepthWeightedAverage(2 * count)


class Bert(nn.Module):
    """The model of both training codes."""

    def __init__(self, kind: str, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.embedding = Embedding(sizes)
        self.transformer = Layers(sizes, kind)
        self.classifier = Head(sizes, self.embedding.word_embedding.weight)
        self.sigma_map = None
        if kind == "freq":
            self.sigma_map = TimeEmbedding(COND_DIM)


class HuggingFaceBody(Layers):
    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__(sizes, "gpt_bert", saves_positions=False)
        self.embedding = Embedding(sizes)


class HuggingFaceModel(nn.Module):
    """The released GPT-BERT for masked language modelling."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        self.model = HuggingFaceBody(sizes)
        self.lm_head = Head(sizes, self.model.embedding.word_embedding.weight)


def disturbed(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew, norms and AdaLN included."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return model


def published_model(kind: str = "freq", seed: int = 0, **sizes: Any) -> nn.Module:
    """A model of one kind; `hugging_face` is GPT-BERT as released."""
    sizes = SIZES | sizes
    return disturbed(HuggingFaceModel(sizes) if kind == "hugging_face" else Bert(kind, sizes), seed)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter once, under the name that torch finds first, with released names as in training."""
    renamed = {"model.embedding.": "embedding.", "lm_head.": "classifier.", "model.": "transformer."}
    found = {}
    for name, parameter in model.named_parameters():
        prefix = next((old for old in renamed if name.startswith(old)), "")
        found[renamed.get(prefix, "") + name.removeprefix(prefix)] = parameter.detach().clone()
    return found


def with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as wrappers save it."""
    return {prefix + name: tensor for name, tensor in state.items()}


def averaged(model: nn.Module, seed: int = 1) -> nn.Module:
    """A model whose every parameter is near that of `model`, but not it."""
    average = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return average


def freq_checkpoint(model: nn.Module, average: nn.Module) -> dict[str, Any]:
    """The training checkpoint of frequency-informed MDLM."""
    return {
        "model": copy.deepcopy(model.state_dict()),
        "ema": {
            "decay": 0.999,
            "num_updates": 1234,
            "shadow_params": [parameter.detach().clone() for parameter in average.parameters()],
            "collected_params": None,
        },
        **optimizer_entries(model),
        "global_step": 1300,
        "args": {
            "train_path": PosixPath("../data/train.bin"),
            "device": torch.device("cuda", 0),
            "cond_dim": 16,
            "cosine_linear": True,
        },
    }


def gpt_bert_checkpoint(model: nn.Module, average: nn.Module) -> dict[str, Any]:
    """The training checkpoint of GPT-BERT."""
    return {
        "model": with_prefix("module.", model.state_dict()),
        "ema_model": average.state_dict(),
        **optimizer_entries(model),
        "global_step": 700,
        "epoch": 3,
    }


def optimizer_entries(model: nn.Module) -> dict[str, Any]:
    """States of an optimiser after a step, and of its scheduler."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.step()
    scheduler.step()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)
    return {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}


def write_model_config(path: Path, without: Iterable[str] = (), **fields: Any) -> Path:
    """The JSON file with the sizes."""
    content = {**SIZES, "cond_dim": COND_DIM, **fields}
    path.write_text(json.dumps({name: value for name, value in content.items() if name not in without}))
    return path


def write_tokenizer(path: Path) -> Path:
    """The small tokenizer."""
    small_tokenizer().save(path)
    return path
