"""Import of published checkpoints to run folders."""

import argparse
import errno
import json
import os
import pickle
import re
import zipfile
from pathlib import Path, PosixPath, PurePosixPath
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.corpora import VOCAB, documents, write_text
from support.oracle import Oracle, visible
from support.published import (
    SIZES,
    averaged,
    freq_checkpoint,
    gpt_bert_checkpoint,
    parameters,
    published_buckets,
    published_model,
    with_prefix,
    write_model_config,
    write_tokenizer,
)
from support.runs import run as train

from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.prepare import prepare_corpus
from ltg_mdlm.inference.trained_model import open_model
from ltg_mdlm.interchange import import_checkpoint as import_checkpoint_module
from ltg_mdlm.interchange.import_checkpoint import import_checkpoint
from ltg_mdlm.interchange.published_checkpoints import parameter_order, read_checkpoint_file, read_published
from ltg_mdlm.model.attention import distance_buckets
from ltg_mdlm.model.transformer import ModelConfig
from ltg_mdlm.storage import checkpoint
from ltg_mdlm.storage.checkpoint import damage, find_checkpoint, load_weights, read_about


@pytest.fixture
def given(tmp_path):
    """Files that go with a checkpoint: keyword arguments of `import_checkpoint`."""
    return {
        "model_config": write_model_config(tmp_path / "base.json"),
        "tokenizer": write_tokenizer(tmp_path / "tokenizer.json"),
        "out": tmp_path / "run",
    }


def saved(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


# ---- every published layout ----


def bare(kind):
    return lambda path: saved(path, published_model(kind).state_dict())


def wrapped(kind, prefix):
    return lambda path: saved(path, with_prefix(prefix, published_model(kind).state_dict()))


def compiled_layers(path):
    """With the names that `torch.compile` of single layers leaves."""
    state = published_model("freq").state_dict()
    return saved(path, {name.replace("_layers.1.", "_layers.1._orig_mod."): t for name, t in state.items()})


def as_safetensors(kind, keep):
    """Safetensors files hold every tensor once, under one of its names."""

    def write(path):
        state = {name: tensor.clone() for name, tensor in published_model(kind).state_dict().items()}
        doubles = ("mlp.1.weight", "mlp.4.weight", "word_embedding.weight")
        others = ("linear1.weight", "linear2.weight", "nonlinearity.5.weight")
        dropped = others if keep == "first" else doubles
        save_file({name: tensor for name, tensor in state.items() if not name.endswith(dropped)}, path)
        return path

    return write


def own_names(path):
    """With the names of `model.transformer`, as in exported folders."""
    save_file(parameters(published_model("freq")), path)
    return path


FORMS = {
    "freq, state dict": ("freq", bare("freq")),
    "freq, under data parallelism": ("freq", wrapped("freq", "module.")),
    "freq, compiled": ("freq", wrapped("freq", "_orig_mod.")),
    "freq, compiled under data parallelism": ("freq", wrapped("freq", "module._orig_mod.")),
    "freq, compiled layers": ("freq", compiled_layers),
    "freq, safetensors with first names": ("freq", as_safetensors("freq", "first")),
    "freq, safetensors with second names": ("freq", as_safetensors("freq", "second")),
    "freq, own names": ("freq", own_names),
    "gpt_bert, state dict": ("gpt_bert", bare("gpt_bert")),
    "gpt_bert, under data parallelism": ("gpt_bert", wrapped("gpt_bert", "module.")),
    "gpt_bert, safetensors": ("gpt_bert", as_safetensors("gpt_bert", "first")),
    "gpt_bert, Hugging Face release": ("hugging_face", bare("hugging_face")),
    "gpt_bert, Hugging Face safetensors": ("hugging_face", as_safetensors("hugging_face", "first")),
    "freq without time, state dict": ("freq_unconditioned", bare("freq_unconditioned")),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_keeps_its_weights_to_the_bit(tmp_path, given, form):
    kind, write = FORMS[form]
    import_checkpoint(write(tmp_path / "file"), **given)
    newest = find_checkpoint(given["out"])
    expected = parameters(published_model(kind))
    for is_averaged in (True, False):
        assert_equal(load_weights(newest, averaged=is_averaged), expected)


@pytest.mark.parametrize(
    ("kind", "make", "step", "updates"),
    [("freq", freq_checkpoint, 1300, 1234), ("gpt_bert", gpt_bert_checkpoint, 700, 700)],
)
def test_a_training_checkpoint_keeps_weights_and_averages_to_the_bit(tmp_path, given, kind, make, step, updates):
    model = published_model(kind)
    average = averaged(model)
    import_checkpoint(saved(tmp_path / "training_checkpoint.pt", make(model, average)), **given)
    newest = find_checkpoint(given["out"])
    assert newest.name == f"step_{step:07d}"
    assert_equal(load_weights(newest, averaged=False), parameters(model))
    assert_equal(load_weights(newest, averaged=True), parameters(average))
    about = read_about(newest)
    assert (about["step"], about["words_seen"]) == (step, None)
    assert about["imported_from"]["file"] == "training_checkpoint.pt"
    assert damage(newest) is None
    opened = open_model(given["out"], Ranks.alone())
    assert_equal(opened.model.state_dict(), parameters(average))


def test_averages_can_be_left_out(tmp_path, given):
    model = published_model()
    content = freq_checkpoint(model, averaged(model))
    content["ema"] = "something else"
    file = saved(tmp_path / "file", content)
    with pytest.raises(UserError, match=r"`ema` has no list of tensors `shadow_params`.*\n.*--weights raw"):
        import_checkpoint(file, **given)
    imported = import_checkpoint(file, weights="raw", **given)
    assert_equal(load_weights(find_checkpoint(given["out"]), averaged=True), parameters(model))
    assert "without averages" in imported.describe()
    assert "not imported: ema, optimizer, scheduler, args" in imported.describe()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_the_size_become_float32_without_loss(tmp_path, given, dtype):
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in published_model("gpt_bert").state_dict().items()
    }
    import_checkpoint(saved(tmp_path / "file", state), **given)
    found = load_weights(find_checkpoint(given["out"]))
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert_equal({name: tensor.to(dtype) for name, tensor in found.items()}, {name: state[name] for name in found})


@pytest.mark.parametrize(
    ("kind", "plugin", "predicts", "modes", "config"),
    [
        ("freq", "freq_mdlm", "same", {"masked"}, "freq_cosine"),
        ("freq_unconditioned", "freq_mdlm", "same", {"masked"}, "freq_cosine"),
        ("gpt_bert", "gpt_bert", "next", {"masked", "causal"}, "gpt_bert_100m"),
        ("hugging_face", "gpt_bert", "next", {"masked", "causal"}, "gpt_bert_100m"),
    ],
)
def test_the_layout_decides_the_recipe(tmp_path, given, kind, plugin, predicts, modes, config):
    import_checkpoint(saved(tmp_path / "file", published_model(kind).state_dict()), **given)
    opened = open_model(given["out"], Ranks.alone())
    assert (opened.predicts, opened.modes) == (predicts, modes)
    settings = RunConfig.model_validate(yaml.safe_load((given["out"] / "config.yaml").read_text()))
    assert settings.name == config
    assert plugin in settings.plugins
    assert settings.model.hidden_size == SIZES["hidden_size"]
    assert (opened.value_for_rate(torch.tensor([0.5])) is None) == (kind != "freq")


def test_weights_that_fit_two_recipes_need_one_named(tmp_path, given):
    file = saved(tmp_path / "file", published_model("gpt_bert_plain").state_dict())
    with pytest.raises(UserError, match=r"neither time conditioning .* nor depth-weighted .*\n.*--config freq_cosine"):
        import_checkpoint(file, **given)
    import_checkpoint(file, configs=["freq_cosine"], sets=["plugins.uniform_mdlm.conditioning=none"], **given)
    assert open_model(given["out"], Ranks.alone()).predicts == "same"


def test_a_training_checkpoint_names_the_code_base_of_such_weights(tmp_path, given):
    model = published_model("gpt_bert_plain")
    import_checkpoint(saved(tmp_path / "file", gpt_bert_checkpoint(model, averaged(model))), **given)
    assert open_model(given["out"], Ranks.alone()).predicts == "next"


@pytest.mark.parametrize("kind", ["freq", "freq_unconditioned", "gpt_bert", "hugging_face"])
def test_an_imported_model_computes_what_the_published_one_does(tmp_path, given, kind):
    model = published_model(kind)
    import_checkpoint(saved(tmp_path / "file", model.state_dict()), **given)
    opened = open_model(given["out"], Ranks.alone())
    sizes = SimpleNamespace(**SIZES, depth_weighted_averaging=kind in ("gpt_bert", "hugging_face"))
    oracle = Oracle(sizes, parameters(model))
    torch.manual_seed(0)
    ids_BT = torch.randint(16, VOCAB, (2, 70))
    documents_BT, causal_B = torch.zeros(2, 70, dtype=torch.int32), torch.zeros(2, dtype=torch.bool)
    conditioning_B = torch.tensor([0.0, 0.4]) if kind == "freq" else None
    expected = oracle.logits(oracle.hidden(ids_BT, visible(documents_BT, causal_B), conditioning_B))
    found = opened.model.logits(opened.model.head(opened.model(ids_BT, conditioning_B=conditioning_B)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# ---- the order of averages without names ----


@pytest.mark.parametrize("kind", ["freq", "freq_unconditioned"])
def test_parameters_are_ordered_as_the_published_modules_order_them(kind):
    order = list(parameters(published_model(kind, num_hidden_layers=11)))
    assert list(parameter_order(reversed(order))) == order


def one_average_less(content):
    del content["ema"]["shadow_params"][-1]


def two_averages_exchanged(content):
    shadows = content["ema"]["shadow_params"]
    shadows[0], shadows[1] = shadows[1], shadows[0]


def sorted_weights(content):
    content["model"] = dict(sorted(content["model"].items()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (one_average_less, r"there are 30 of them for 31 weights"),
        (two_averages_exchanged, r"other shapes: embedding\.relative_embedding \[63, 24\] against \[320, 24\]"),
        (sorted_weights, r"not in the order of the published code"),
    ],
)
def test_averages_are_refused_where_their_order_is_in_doubt(tmp_path, given, spoil, message):
    model = published_model()
    content = freq_checkpoint(model, averaged(model))
    spoil(content)
    file = saved(tmp_path / "file", content)
    with pytest.raises(UserError, match=rf"{message}(.|\n)*pytorch_model_ema\.bin(.|\n)*--weights raw"):
        import_checkpoint(file, **given)
    assert not given["out"].exists()
    import_checkpoint(file, weights="raw", **given)


# ---- every tensor accounted for ----


def without_a_bias(state):
    del state["transformer.attention_layers.1.out_proj.bias"]


def with_another_tensor(state):
    state["pooler.weight"] = torch.zeros(3)


def with_another_gate(state):
    for layer in range(2):
        name = f"transformer.attention_layers.{layer}.in_proj_vg.weight"
        state[name] = state[name][:24]


def with_a_double(state):
    name = "classifier.nonlinearity.1.bias"
    state[name] = state[name].double()


def with_an_untied_head(state):
    state["classifier.nonlinearity.5.weight"] = state["classifier.nonlinearity.5.weight"] + 1


def with_another_second_name(state):
    name = "transformer.mlp_layers.0.linear2.weight"
    state[name] = torch.zeros_like(state[name])


def with_other_buckets(state):
    state["transformer.attention_layers.0.position_indices"] = published_buckets(512, 32).flip(0)


def with_fewer_positions(state):
    for layer in range(2):
        state[f"transformer.attention_layers.{layer}.position_indices"] = published_buckets(256, 32)


def with_a_scalar_embedding(state):
    for name in ("embedding.word_embedding.weight", "classifier.nonlinearity.5.weight"):
        state[name] = torch.tensor(1.0)


def with_a_sparse_tensor(state):
    name = "transformer.attention_layers.0.out_proj.bias"
    state[name] = state[name].to_sparse()


def with_a_number(state):
    state["version"] = 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_bias, r"missing: transformer\.attention_layers\.1\.out_proj\.bias$"),
        (with_another_tensor, r"not in the model: pooler\.weight$"),
        (
            with_another_gate,
            r"another shape: transformer\.attention_layers\.\{0-1\}\.in_proj_vg\.weight \[24, 24\]"
            r" instead of \[48, 24\] \(2\)$",
        ),
        (with_a_double, r"floating-point type of up to 32 bits: classifier\.nonlinearity\.1\.bias float64$"),
        (with_an_untied_head, r"embedding\.word_embedding\.weight and classifier\.nonlinearity\.5\.weight$"),
        (with_another_second_name, r"mlp_layers\.0\.mlp\.4\.weight and transformer\.mlp_layers\.0\.linear2\.weight$"),
        (with_other_buckets, r"buckets of these sizes: transformer\.attention_layers\.0\.position_indices$"),
        (with_fewer_positions, r"\{0-1\}\.position_indices \[256, 256\] instead of \[512, 512\] \(2\)$"),
        (with_a_scalar_embedding, r"the word embedding in .*file: 0\n"),
        (with_a_sparse_tensor, r"not a model's state dict: it holds transformer\.attention_layers\.0\.out_proj\.bias$"),
        (with_a_number, r"not a model's state dict: it holds version$"),
    ],
)
def test_every_tensor_is_accounted_for(tmp_path, given, spoil, message):
    state = dict(published_model().state_dict())
    spoil(state)
    with pytest.raises(UserError, match=message):
        import_checkpoint(saved(tmp_path / "file", state), **given)
    assert not given["out"].exists()


def test_all_that_is_wrong_is_listed_at_once(tmp_path, given):
    state = dict(published_model().state_dict())
    for spoil in (without_a_bias, with_another_tensor, with_another_gate):
        spoil(state)
    with pytest.raises(UserError, match=r"missing: (.|\n)*not in the model: (.|\n)*of another shape: "):
        import_checkpoint(saved(tmp_path / "file", state), **given)


def test_averages_are_held_to_the_same(tmp_path, given):
    model = published_model("gpt_bert")
    content = gpt_bert_checkpoint(model, averaged(model))
    del content["ema_model"]["embedding.relative_embedding"]
    with pytest.raises(UserError, match=r"file: the averages: .*\n  missing: embedding\.relative_embedding$"):
        import_checkpoint(saved(tmp_path / "file", content), **given)


@pytest.mark.parametrize("sizes", [(512, 32), (128, 32), (256, 16)])
def test_published_buffers_are_the_buckets_of_the_model(sizes):
    bucket_P = torch.tensor(distance_buckets(*sizes))
    assert torch.equal(published_buckets(*sizes)[:, 0], bucket_P + sizes[1] - 1)


def test_without_buffers_no_matrix_of_all_pairs_of_positions_is_made(monkeypatch):
    monkeypatch.setattr(import_checkpoint_module, "distance_buckets", None)
    assert not list(import_checkpoint_module._wrong_positions({}, ModelConfig()))


def test_a_bucket_after_the_end_of_the_table_is_accepted(tmp_path, given):
    """Files of some processors have one: in float32, the ceiling of the last distance can be one too high."""
    write_model_config(given["model_config"], max_position_embeddings=192)
    state = dict(published_model(max_position_embeddings=192).state_dict())
    for name in [name for name in state if name.endswith(".position_indices")]:
        state[name] = state[name].clone()
        state[name][191, 0], state[name][0, 191] = 63, -1
    import_checkpoint(saved(tmp_path / "file", state), **given)
    assert open_model(given["out"], Ranks.alone()).model.config.max_position_embeddings == 192


# ---- files ----


class Command:
    """Creates a file if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("save", ["zip", "legacy", "pickle"])
def test_no_code_in_a_file_is_run(tmp_path, given, save):
    trace, file = tmp_path / "trace", tmp_path / "file"
    content = {"model": published_model().state_dict(), "args": Command(trace)}
    if save == "pickle":
        file.write_bytes(pickle.dumps({"args": Command(trace)}, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=save == "zip")
    with pytest.raises(UserError, match=r"file: refused: unpickling it would call posix\.system.* nothing was run"):
        import_checkpoint(file, **given)
    assert not trace.exists()
    assert not given["out"].exists()


@pytest.mark.parametrize("module", [b"pathlib", b"pathlib._local"])
def test_paths_are_read_whatever_python_wrote_them(tmp_path, module):
    """A pickled path has a class and parts; in Python 3.13 the class was in another module."""
    torch.save({"train_path": PosixPath("/data/train.bin")}, tmp_path / "written")
    with zipfile.ZipFile(tmp_path / "written") as old, zipfile.ZipFile(tmp_path / "file", "w") as new:
        for entry in old.namelist():
            content = re.sub(rb"cpathlib(\._local)?\nPosixPath", b"c" + module + b"\nPosixPath", old.read(entry))
            new.writestr(entry, content)
        assert b"c" + module + b"\nPosixPath" in new.read("written/data.pkl")
    assert read_checkpoint_file(tmp_path / "file") == {"train_path": PurePosixPath("/data/train.bin")}


def test_the_arguments_that_the_training_script_of_ltg_bert_saves_are_left_out(tmp_path, given):
    run = {"model": published_model().state_dict(), "args": argparse.Namespace(lr=0.1, path=PosixPath("/data"))}
    torch.save(run, tmp_path / "file")
    assert read_published(tmp_path / "file").left_out == ("args",)
    import_checkpoint(tmp_path / "file", **given)


def test_no_code_is_run_through_arguments(tmp_path):
    torch.save({"args": argparse.Namespace(command=Command(tmp_path / "trace"))}, tmp_path / "file")
    with pytest.raises(UserError, match=r"refused: unpickling it would call posix\.system"):
        read_checkpoint_file(tmp_path / "file")
    # The unpickler would call an attribute `__setstate__` that the file gave to the arguments.
    found = argparse.Namespace()
    vars(found)["__setstate__"] = torch.Size
    torch.save({"args": found}, tmp_path / "file")
    assert not vars(read_checkpoint_file(tmp_path / "file")["args"])
    assert not (tmp_path / "trace").exists()


def a_text(path):
    path.write_text("Once upon a time there was a model, and it was not saved here.")


def a_tokenised_corpus(path):
    torch.save([torch.zeros(5, dtype=torch.int16)], path)


def half_a_checkpoint(path):
    torch.save(published_model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])


def half_a_safetensors_file(path):
    own_names(path)
    path.write_bytes(path.read_bytes()[:5000])


def an_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, r"file: no such file or folder"),
        (lambda path: path.mkdir(), r"file: no weights in this folder: neither model\.safetensors nor pytorch_model"),
        (lambda path: path.touch(), r"file: not a checkpoint"),
        (a_text, r"file: not a checkpoint"),
        (an_archive, r"file: not a checkpoint"),
        (half_a_checkpoint, r"file: not a checkpoint"),
        (half_a_safetensors_file, r"file cannot be read"),
        (a_tokenised_corpus, r"file: not a checkpoint: it holds a list"),
        (lambda path: torch.save({}, path), r"file: not a model's state dict: it is empty"),
        (lambda path: torch.save({"model": {}}, path), r"file: `model`: not a model's state dict: it is empty"),
        (lambda path: torch.save({"step": 3, "x": None}, path), r"not a model's state dict: it holds step, x"),
    ],
)
def test_other_files_are_refused(tmp_path, given, write, message):
    write(tmp_path / "file")
    with pytest.raises(UserError, match=message):
        import_checkpoint(tmp_path / "file", **given)
    assert not given["out"].exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"base\.json: no such file\n  give the JSON file"),
        (lambda path: path.write_text("[" * 100_000), r"base\.json:1: JSON nested too deeply\n  give the JSON file"),
        (lambda path: path.write_bytes(b"\xff\xfe{}"), r"base\.json: not UTF-8 text \(byte 0\)\n  give the JSON file"),
        (lambda path: path.write_text("{"), r"base\.json:1: not JSON"),
        (lambda path: path.write_text("[1]"), r"base\.json:1: expected a JSON object, not \[1\]\n  give the JSON file"),
        (
            lambda path: write_model_config(path, without=["num_attention_heads", "layer_norm_eps"]),
            r"base\.json: not a model config: missing num_attention_heads, layer_norm_eps\n",
        ),
        (
            lambda path: write_model_config(path, num_attention_heads="three"),
            r"model\.num_attention_heads: Input should be a valid integer.*\n  set in .*base\.json",
        ),
        (
            lambda path: write_model_config(path, vocab_size=16384),
            r"sizes of the vocabulary differ:\n  the tokenizer .*: 320\n  vocab_size in .*base\.json: 16384\n"
            r"  the word embedding in .*file: 320\n",
        ),
        (
            lambda path: write_model_config(path, intermediate_size=48, cond_dim=8),
            r"another shape: .*mlp\.1\.weight \[80, 24\] instead of \[96, 24\] \(2\), .*adaLN_modulations\.\{0-1\}\.w",
        ),
        (lambda path: write_model_config(path, num_hidden_layers=3), r"missing: .*attention_layers\.2\.in_proj_qk"),
        (lambda path: write_model_config(path, num_hidden_layers=1), r"not in the model: .*attention_layers\.1\.in_pr"),
    ],
)
def test_a_model_config_that_does_not_fit_is_refused(tmp_path, given, spoil, message):
    spoil(given["model_config"])
    with pytest.raises(UserError, match=message):
        import_checkpoint(saved(tmp_path / "file", published_model().state_dict()), **given)
    assert not given["out"].exists()


def test_ignored_fields_of_a_model_config_are_listed(tmp_path, given):
    write_model_config(given["model_config"], architectures=["Bert"], attention_probs_dropout_prob=0.2)
    imported = import_checkpoint(saved(tmp_path / "file", published_model().state_dict()), **given)
    assert "ignored fields of the model config: attention_probs_dropout_prob, architectures" in imported.describe()
    assert imported.config.model.dropout == 0.1


def test_another_vocabulary_is_refused(tmp_path, given):
    file = saved(tmp_path / "file", published_model(vocab_size=VOCAB + 1).state_dict())
    write_model_config(given["model_config"], without=["vocab_size"])
    with pytest.raises(
        UserError, match=rf"differ:\n  the tokenizer .*: {VOCAB}\n  the word embedding .*: {VOCAB + 1}\n"
    ):
        import_checkpoint(file, **given)


def test_nothing_is_written_over_what_is_there(tmp_path, given):
    given["out"].mkdir()
    with pytest.raises(UserError, match=r"run exists already"):
        import_checkpoint(saved(tmp_path / "file", published_model().state_dict()), **given)


def test_a_full_disk_leaves_no_folder(tmp_path, given, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    file = saved(tmp_path / "file", published_model().state_dict())
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match="the disk is full; nothing was written"):
        import_checkpoint(file, **given)
    assert set(tmp_path.iterdir()) == before


# ---- folders, and exports of this package ----


def sigma(intervals: int = 64) -> torch.Tensor:
    return -torch.log1p(-0.999 * torch.linspace(0, 1, intervals + 1))


def exported_folder(folder: Path, tensors, *, table=None, training=None) -> Path:
    """The files of an export that are imported, with its tensor names."""
    folder.mkdir()
    write_model_config(folder / "config.json", model_type="ltg_mdlm", predicts="same")
    write_tokenizer(folder / "tokenizer.json")
    buffers = {} if table is None else {"rate_table.value_at_node": table}
    save_file(with_prefix("denoiser.", tensors) | buffers, folder / "model.safetensors")
    if training is not None:
        (folder / "training.json").write_text(json.dumps(training))
    return folder


def facts_of(run: Path) -> dict:
    """training.json of an export, from the state of the checkpoint."""
    about = read_about(find_checkpoint(run))
    return {key: about[key] for key in ("config", "step", "modes", "predicts")} | {"words_seen": 10_000_000}


def test_a_hub_folder_needs_no_other_files(tmp_path, given):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_model_config(folder / "config.json")
    write_tokenizer(folder / "tokenizer.json")
    torch.save(published_model("hugging_face").state_dict(), folder / "pytorch_model.bin")
    import_checkpoint(folder, out=given["out"])
    assert_equal(load_weights(find_checkpoint(given["out"])), parameters(published_model("hugging_face")))


def folder_of(path: Path, **states) -> Path:
    """A folder with a model config, a tokenizer and these files of weights."""
    path.mkdir()
    write_model_config(path / "config.json")
    write_tokenizer(path / "tokenizer.json")
    for name, state in states.items():
        torch.save(state, path / f"{name}.bin")
    return path


@pytest.mark.parametrize("names", [("pytorch_model", "pytorch_model_ema"), ("strict_small", "strict_small_ema")])
def test_of_a_folder_with_averages_these_are_imported_unless_raw_weights_are_wanted(tmp_path, names):
    model = published_model("gpt_bert")
    average = averaged(model)
    states = dict(zip(names, (model.state_dict(), average.state_dict()), strict=True))
    folder = folder_of(tmp_path / "folder", **states, optimizer={"lr": 1.0})
    text = import_checkpoint(folder, out=tmp_path / "ema").describe()
    assert f"{names[1]}.bin was taken (the averages; --weights raw takes" in text
    assert f"not imported: {names[0]}.bin" in text
    assert_equal(load_weights(find_checkpoint(tmp_path / "ema")), parameters(average))
    import_checkpoint(folder, out=tmp_path / "raw", weights="raw")
    assert_equal(load_weights(find_checkpoint(tmp_path / "raw")), parameters(model))


def test_a_folder_whose_weights_are_unclear_is_refused(tmp_path):
    state = published_model("gpt_bert").state_dict()
    with pytest.raises(UserError, match=r"several files of weights: a\.bin, b\.bin\n  give one of them"):
        import_checkpoint(folder_of(tmp_path / "two", a=state, b=state), out=tmp_path / "out")
    with pytest.raises(UserError, match=r"only averages in this folder \(model_ema\.bin\); leave out --weights raw"):
        import_checkpoint(folder_of(tmp_path / "averages", model_ema=state), out=tmp_path / "out", weights="raw")
    with pytest.raises(UserError, match=r"split into several files; save them as one"):
        import_checkpoint(folder_of(tmp_path / "parts", **{"model-00001-of-00002": state}), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("positions", "schedule"),
    [(256, [(0, 128), (0.7, 256)]), (100, [(0, 100)]), (1024, [(0, 128), (0.7, 256), (0.9, 512)])],
)
def test_the_rows_of_the_recipe_are_cut_to_the_positions_of_the_model(tmp_path, given, positions, schedule):
    write_model_config(given["model_config"], max_position_embeddings=positions)
    file = saved(tmp_path / "file", published_model("gpt_bert", max_position_embeddings=positions).state_dict())
    imported = import_checkpoint(file, **given)
    assert imported.config.training.seq_len_schedule == schedule
    note = f"rows cut to the {positions} positions of the model: training."
    assert (note in imported.describe()) == (positions < 512)
    assert open_model(given["out"], Ranks.alone()).model.config.max_position_embeddings == positions


def test_rows_that_the_user_sets_are_not_cut(tmp_path, given):
    write_model_config(given["model_config"], max_position_embeddings=64)
    file = saved(tmp_path / "file", published_model(max_position_embeddings=64).state_dict())
    with pytest.raises(UserError, match=r"rows of 96 tokens are longer than model\.max_position_embeddings 64"):
        import_checkpoint(file, sets=["training.seq_len=96"], **given)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("nested", [False, True])
def test_attention_without_a_gate_is_refused_by_name_before_anything_else(tmp_path, given, prefix, nested):
    state = {
        f"{prefix}{name.replace('in_proj_vg', 'in_proj_v')}": tensor
        for name, tensor in published_model("gpt_bert_plain").state_dict().items()
    }
    given["model_config"].write_text("not even JSON")
    file = saved(tmp_path / "file", {"model": state} if nested else state)
    with pytest.raises(UserError, match=r"file: attention without a gate \(in_proj_v\).* is not supported\n"):
        import_checkpoint(file, **given)


def test_a_file_needs_the_other_two(tmp_path, given):
    with pytest.raises(UserError, match=r"is a file, so --model-config and --tokenizer must be given, too"):
        import_checkpoint(own_names(tmp_path / "file"), out=given["out"])


def test_a_path_that_does_not_exist_is_no_file(tmp_path, given):
    with pytest.raises(UserError, match=r"typo: no such file or folder \(download models of the Hub first\)"):
        import_checkpoint(tmp_path / "typo", out=given["out"])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"predicts": "next"}, "predicts: next, not same"),
        ({"block_length": 4}, "block_length: 4, not 0"),
        ({"backends": ["mlm", "causal"]}, "causal rows: True, not False"),
    ],
)
def test_an_export_that_is_used_in_another_way_than_its_recipe_is_refused(tmp_path, given, field, message):
    """Such as one that `transformers` has saved again, which drops training.json."""
    folder = exported_folder(tmp_path / "exported", parameters(published_model()))
    write_model_config(folder / "config.json", model_type="ltg_mdlm", **{"predicts": "same"} | field)
    with pytest.raises(UserError, match=f"is not of a model of the recipe freq_cosine: {message}"):
        import_checkpoint(folder, out=given["out"])


def test_an_imported_export_has_the_same_weights_settings_and_progress(tmp_path, given):
    model = published_model()
    average = averaged(model)
    import_checkpoint(
        saved(tmp_path / "file", freq_checkpoint(model, average)),
        sets=["plugins.uniform_mdlm.schedule=linear"],
        **given,
    )
    newest = find_checkpoint(given["out"])
    folder = exported_folder(tmp_path / "exported", load_weights(newest), training=facts_of(given["out"]))
    again = import_checkpoint(folder, out=tmp_path / "again")
    assert_equal(load_weights(find_checkpoint(tmp_path / "again")), parameters(average))
    about, about_again = read_about(newest), read_about(find_checkpoint(tmp_path / "again"))
    assert about_again["config"] == about["config"]
    assert (about_again["step"], about_again["words_seen"]) == (1300, 10_000_000)
    assert "ignored fields" not in again.describe()


@pytest.mark.parametrize("conditioning", ["sigma", "mask_rate"])
def test_a_table_of_conditioning_values_must_be_that_of_the_settings(tmp_path, given, conditioning):
    folder = exported_folder(tmp_path / "exported", parameters(published_model()), table=sigma())
    sets = [f"plugins.uniform_mdlm.conditioning={conditioning}"]
    if conditioning == "sigma":
        import_checkpoint(folder, out=given["out"], sets=sets)
        opened = open_model(given["out"], Ranks.alone())
        torch.testing.assert_close(opened.value_for_rate(torch.linspace(0, 1, 65)), sigma())
    else:
        with pytest.raises(UserError, match=r"not the time conditioning of these settings: rate_table\.value_at_node"):
            import_checkpoint(folder, out=given["out"], sets=sets)


def test_the_recipe_of_an_export_without_time_conditioning_comes_from_its_training_file(tmp_path, given):
    """Its tensors alone do not determine the recipe."""
    plain = published_model("gpt_bert_plain")
    recipe = {"configs": ["freq_cosine"], "sets": ["plugins.uniform_mdlm.conditioning=none"]}
    import_checkpoint(saved(tmp_path / "file", plain.state_dict()), **recipe, **given)
    training = facts_of(given["out"])
    folder = exported_folder(tmp_path / "exported", parameters(plain), training=training)
    import_checkpoint(folder, out=tmp_path / "again")
    assert read_about(find_checkpoint(tmp_path / "again"))["config"] == training["config"]
    for content in ("{}", "[" * 100_000, json.dumps(training | {"step": "3"}), json.dumps(training | {"config": [1]})):
        (folder / "training.json").write_text(content)
        with pytest.raises(UserError, match=r"training\.json: not the training facts of an export"):
            import_checkpoint(folder, out=tmp_path / "a third time")


# ---- use of an imported run ----


def corpus_of(folder: Path, tokenizer: Path | None) -> Path:
    text = write_text(folder / "text.txt", documents(60))
    return prepare_corpus(
        [text], folder / "corpus", tokenizer=tokenizer, vocab_size=300, workers=1, progress=False
    ).path


def training_from(given, corpus: Path) -> list[str]:
    sizes = {name: SIZES[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
    return [
        *(f"model.{name}={value}" for name, value in sizes.items()),
        "model.cond_dim=16",
        "training.max_steps=2",
        f"data.corpus={corpus}",
        f"run.init_from={given['out']}",
    ]


def test_an_imported_run_is_trained_on_from(tmp_path, given):
    import_checkpoint(saved(tmp_path / "file", published_model().state_dict()), **given)
    corpus = corpus_of(tmp_path, given["tokenizer"])
    outcome = train(tmp_path / "new", *training_from(given, corpus), "optimizer.lr=1e-12", plugin="freq_mdlm")[0]
    assert outcome.code == 0, outcome.output
    found = load_weights(find_checkpoint(tmp_path / "new"))
    for name, tensor in parameters(published_model()).items():
        torch.testing.assert_close(found[name], tensor, atol=1e-8, rtol=0)


def test_a_corpus_made_with_another_tokenizer_is_refused(tmp_path, given):
    import_checkpoint(saved(tmp_path / "file", published_model().state_dict()), **given)
    corpus = corpus_of(tmp_path, None)
    outcome = train(tmp_path / "new", *training_from(given, corpus), plugin="freq_mdlm")[0]
    assert outcome.code is None
    assert "was trained with another tokenizer" in outcome.output
    assert f"--tokenizer {given['out'] / 'tokenizer.json'}" in outcome.output
    assert not (tmp_path / "new").exists()


def test_an_imported_run_is_finished_and_not_resumed(tmp_path, given, run):
    file = saved(tmp_path / "file", published_model().state_dict())
    options = [f"--{name.replace('_', '-')}={path}" for name, path in given.items()]
    code, out, _ = run("import", str(file), *options)
    assert code == 0
    assert re.search(r"imported .*file: [\d,]+ parameters after 0 steps", out)
    assert json.loads((given["out"] / "status.json").read_text())["status"] == "finished"
    code, out, _ = run("train", "--config", str(given["out"] / "config.yaml"), "--out", str(given["out"]))
    assert code == 0
    assert "is finished" in out
    code, _, err = run("import", str(file), *options)
    assert code == 2
    assert "exists already" in err
