"""Contents of an exported folder, and the model that it opens as; without `transformers`."""

import json
import math
import os
import re
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors import safe_open
from support.corpora import small_tokenizer
from support.third_party import BLOCKS, installed, write_distribution
from support.trained import EMBEDDING_PLUGIN, embedding_plugin_installed, write_run

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.tokenizer import UNK, Tokenizer
from ltg_mdlm.inference.exported_tokenizer import write_tokenizer
from ltg_mdlm.inference.sampling import generate
from ltg_mdlm.inference.sampling_rule import SamplingRule
from ltg_mdlm.inference.scoring import LikelihoodScorer, ScoringRule
from ltg_mdlm.inference.texts import Text
from ltg_mdlm.inference.trained_model import open_model
from ltg_mdlm.interchange import export_model as export_model_module
from ltg_mdlm.interchange.export_model import export_model
from ltg_mdlm.interchange.import_checkpoint import import_checkpoint
from ltg_mdlm.model.rate_table import INTERVALS, RateTable

ROOT = Path(__file__).parents[2]
FILES = {
    "config.json",
    "configuration_ltg_mdlm.py",
    "modeling_ltg_mdlm.py",
    "transformer.py",
    "attention.py",
    "visibility.py",
    "rate_table.py",
    "time_embedding.py",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "training.json",
    "README.md",
}


@pytest.fixture
def embedding_plugin():
    """The plugin `embedding` is installed."""
    with embedding_plugin_installed():
        yield


@pytest.fixture(scope="module")
def uniform(tmp_path_factory) -> Path:
    """A run of uniform_mdlm."""
    return write_run(tmp_path_factory.mktemp("runs") / "uniform")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory) -> Path:
    """A run of gpt_bert."""
    return write_run(tmp_path_factory.mktemp("runs") / "hybrid", "gpt_bert")


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def opened(path: Path, **options):
    return open_model(path, Ranks.alone(), **options)


def sigma(rate):
    """Conditioning value of MDLM for a mask rate."""
    return -torch.log1p(-0.999 * rate)


def test_an_export_is_complete_and_its_code_is_the_packages_own(uniform, tmp_path):
    [folder] = export_model(uniform, tmp_path / "out")
    assert {path.name for path in folder.iterdir()} == FILES
    for name in (name for name in FILES if name.endswith(".py")):
        assert (folder / name).read_bytes() == (ROOT / "ltg_mdlm" / "model" / name).read_bytes()


def test_the_config_says_how_to_use_a_diffusion_model(uniform, tmp_path):
    config = config_of(export_model(uniform, tmp_path / "out")[0])
    assert config["backends"] == ["mlm"]
    assert config["predicts"] == "same"
    assert (config["mask_rate"], config["constant_rate"]) == ("fraction", None)
    assert config["tie_word_embeddings"] is False
    assert config["torch_dtype"] == "float32"
    assert {name: config[f"{name}_token_id"] for name in ("unk", "bos", "eos", "pad", "mask", "cls", "sep")} == {
        "unk": 0,
        "bos": 1,
        "eos": 2,
        "pad": 3,
        "mask": 4,
        "cls": 1,
        "sep": 2,
    }


def test_the_config_of_a_hybrid_says_that_it_predicts_the_next_token_and_has_no_mask_rates(hybrid, tmp_path):
    config = config_of(export_model(hybrid, tmp_path / "out")[0])
    assert config["backends"] == ["mntp", "causal"]
    assert config["predicts"] == "next"
    assert config["cond_dim"] is None
    assert not {"mask_rate", "constant_rate", "rate_intervals", "time_embedding"} & config.keys()


def test_only_a_model_that_was_trained_on_causal_rows_has_a_causal_class(uniform, hybrid, tmp_path):
    classes = [config_of(export_model(run, tmp_path / run.name)[0])["auto_map"] for run in (uniform, hybrid)]
    assert ["AutoModelForCausalLM" in names for names in classes] == [False, True]
    assert all("AutoModelForMaskedLM" in names for names in classes)


def test_the_special_tokens_are_the_same_in_all_three_files_and_take_no_blanks(tmp_path):
    definition = small_tokenizer().definition
    greedy = [token | {"lstrip": True, "rstrip": True} for token in definition["added_tokens"]]
    run = write_run(tmp_path / "run", tokenizer=Tokenizer(definition | {"added_tokens": greedy}))
    [folder] = export_model(run, tmp_path / "out")
    content, settings, names = (
        json.loads((folder / name).read_text())
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    )
    added = {str(token.pop("id")): token for token in content["added_tokens"]}
    assert added == settings["added_tokens_decoder"]
    assert not any(token["lstrip"] or token["rstrip"] for token in added.values())
    assert names.items() <= settings.items()
    assert set(names.values()) <= {token["content"] for token in added.values()}
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert backend.encode("text<mask><mask><mask>").ids[-3:] == [4, 4, 4]
    assert backend.decode(backend.encode("a <mask>").ids, skip_special_tokens=False) == "<s> a <mask>"


def test_the_embedding_matrix_is_in_the_weights_once(uniform, tmp_path):
    [folder] = export_model(uniform, tmp_path / "out")
    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 not a dict
        assert file.metadata() == {"format": "pt"}
    assert shapes.count([320, 24]) == 1


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("plugin", ["uniform_mdlm", "freq_mdlm", "gpt_bert"])
def test_an_exported_model_opens_as_the_one_it_was(plugin, weights, tmp_path):
    run = write_run(tmp_path / "run", plugin)
    [folder] = export_model(run, tmp_path / "out", weights=weights)
    trained, exported = opened(run, weights=weights), opened(folder)
    same = {
        name: torch.equal(tensor, exported.model.state_dict()[name])
        for name, tensor in trained.model.state_dict().items()
    }
    assert all(same.values())
    assert exported.model.config == trained.model.config
    assert exported.tokenizer.fingerprint == trained.tokenizer.fingerprint
    assert (exported.predicts, exported.modes) == (trained.predicts, trained.modes)
    assert (exported.weights, exported.name, exported.revision) == (weights, "out", "main")
    assert exported.about["words_seen"] == 500_000


def test_the_length_of_blocks_is_in_the_export_and_in_the_checkpoint_and_survives_an_import(tmp_path):
    write_distribution(tmp_path / "site", "blocks", BLOCKS)
    with installed(tmp_path / "site"):
        run = write_run(tmp_path / "run", "blocks", "plugins.uniform_mdlm.conditioning=none")
        [folder] = export_model(run, tmp_path / "out")
        import_checkpoint(folder, out=tmp_path / "again")
        assert config_of(folder)["block_length"] == 4
        paths = (run, folder, tmp_path / "again")
        assert [opened(path).block_length for path in paths] == [4, 4, 4]
        texts = [[Text("", "the dog ran and saw a cat")]]
        scores = [
            [LikelihoodScorer(opened(path), ScoringRule(score=score), Ranks.alone())(texts) for path in paths]
            for score in ("pll", "bound")
        ]
        assert all(found == [found[0]] * 3 for found in scores)
        drawn = [generate(opened(path), SamplingRule(), length=9) for path in paths]
        assert drawn == [drawn[0]] * 3
    assert "blocks of 4 tokens" in (folder / "README.md").read_text()
    assert opened(folder).block_length == 4, "an export needs no plugin to say so"


@pytest.mark.parametrize("value", [-1, "4", 2.0, True])
def test_a_length_of_blocks_that_is_none_is_refused(uniform, tmp_path, value):
    [folder] = export_model(uniform, tmp_path / "out")
    (folder / "config.json").write_text(json.dumps(config_of(folder) | {"block_length": value}))
    with pytest.raises(UserError, match=r"config.json: block_length must be 0 or a number of tokens, not"):
        opened(folder)


def test_models_without_blocks_have_no_block_length_in_their_config(uniform, tmp_path):
    [folder] = export_model(uniform, tmp_path / "out")
    assert "block_length" not in config_of(folder)
    assert opened(folder).block_length == 0


def test_averaged_and_last_weights_differ(uniform, tmp_path):
    folders = [export_model(uniform, tmp_path / name, weights=name)[0] for name in ("ema", "raw")]
    average, last = (opened(folder).model.embedding.word_embedding.weight for folder in folders)
    torch.testing.assert_close(average, last + 0.01)


@pytest.mark.parametrize(("plugin", "value"), [("uniform_mdlm", torch.tensor([0.0, 0.3, 1.0])), ("gpt_bert", None)])
def test_an_exported_model_keeps_its_map_of_mask_rates(plugin, value, tmp_path):
    [folder] = export_model(write_run(tmp_path / "run", plugin), tmp_path / "out")
    assert "rate_intervals" not in config_of(folder)  # the value is the rate, or there is none
    found = opened(folder).value_for_rate(torch.tensor([0.0, 0.3, 1.0]))
    assert found is None if value is None else torch.equal(found, value)


def test_a_map_of_mask_rates_other_than_the_identity_is_exported_as_a_table(tmp_path):
    run = write_run(tmp_path / "run", "uniform_mdlm", "plugins.uniform_mdlm.conditioning=sigma")
    [folder] = export_model(run, tmp_path / "out")
    assert config_of(folder)["rate_intervals"] == INTERVALS
    rates = torch.tensor([masked / length for length in range(1, 513) for masked in {0, 1, 2, 3, length // 2, length}])
    rates = rates.clamp(max=1)
    got, expected = (opened(path).value_for_rate(rates) for path in (folder, run))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(("below", "error"), [(0.5, 2e-7), (0.9, 8e-7), (511 / 512, 2e-5), (1.0, 7e-5)])
def test_a_table_of_sigma_is_as_exact_as_documented(below, error):
    rates = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * below
    assert float((RateTable.of(sigma)(rates) - sigma(rates)).abs().max()) < error


def test_a_table_is_exact_at_its_nodes_and_constant_outside():
    nodes = torch.arange(INTERVALS + 1) / INTERVALS
    table = RateTable.of(lambda rate: rate.square())
    assert torch.equal(table(nodes), nodes.square())
    assert table(torch.tensor([-0.1, 1.1])).tolist() == [0.0, 1.0]


def test_a_map_that_is_not_finite_cannot_be_tabulated():
    with pytest.raises(ValueError, match="of mask rate 1 is not finite"):
        RateTable.of(lambda rate: -torch.log1p(-rate))


def test_revisions_are_a_folder_each(tmp_path):
    run = write_run(tmp_path / "run", words_seen=(1_000_000, 2_100_000, 2_200_000))
    folders = export_model(run, tmp_path / "out", revisions=True)
    assert [folder.name for folder in folders] == ["main", "chck_1M", "chck_2M"]
    assert json.loads((tmp_path / "out" / "revisions.json").read_text()) == {
        "revisions": ["main", "chck_1M", "chck_2M"]
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"main", "chck_1M", "chck_2M", "revisions.json"}
    for folder, words in zip(folders, (2_200_000, 1_000_000, 2_100_000), strict=True):
        assert {path.name for path in folder.iterdir()} == FILES
        model = opened(folder)
        assert (model.name, model.revision, model.about["words_seen"]) == ("out", folder.name, words)
    assert opened(tmp_path / "out").source == tmp_path / "out" / "main"


def test_the_tokenizer_adds_a_beginning_and_no_end(uniform, tmp_path):
    [folder] = export_model(uniform, tmp_path / "out")
    template = json.loads((folder / "tokenizer.json").read_text())["post_processor"]
    named = [
        {part: next(iter(piece.values()))["id"] for part, piece in enumerate(template[kind])}
        for kind in ("single", "pair")
    ]
    assert [list(pieces.values()) for pieces in named] == [["<s>", "A"], ["<s>", "A", "<s>", "B"]]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert settings["pad_token"] == "<pad>"


def test_the_tokenizer_shows_what_the_vocabulary_lacks_as_it_does_here(tmp_path):
    definition = json.loads(json.dumps(small_tokenizer().definition))
    definition["model"]["vocab"]["ZZZ"] = definition["model"]["vocab"].pop("Z")
    tokenizer = Tokenizer(definition | {"model": definition["model"] | {"unk_token": None, "byte_fallback": True}})
    write_tokenizer(tokenizer, 64, tmp_path)
    exported = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("a Z b").count(UNK) == 1
    assert exported.encode("a Z b", add_special_tokens=False).ids == tokenizer.encode("a Z b")
    assert Tokenizer.read(tmp_path / "tokenizer.json").fingerprint == tokenizer.fingerprint


def test_the_card_has_backends_training_and_metrics(hybrid, tmp_path):
    card = (export_model(hybrid, tmp_path / "out")[0] / "README.md").read_text()
    for text in (
        "# hybrid",
        "`mntp`",
        "`causal`",
        "500,000 words seen",
        "plugins.gpt_bert.causal_share",
        "the generated corpus",
        "| objective | 5.0000 |",
    ):
        assert text in card
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "mntp_shift=True" in card
    assert config["mntp_shift"] is False
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_card_of_a_diffusion_model_has_its_mask_rate_and_warns_of_causal_scores(uniform, tmp_path):
    [folder] = export_model(uniform, tmp_path / "out", mask_rate="constant", constant_rate=0.15)
    card = (folder / "README.md").read_text()
    assert "it is the constant 0.15" in card
    assert "has no `AutoModelForCausalLM`" in card
    assert (config_of(folder)["mask_rate"], config_of(folder)["constant_rate"]) == ("constant", 0.15)


def test_an_export_has_no_paths_of_the_machine(tmp_path):
    run = write_run(tmp_path / "run", "uniform_mdlm", f"data.corpus={tmp_path}/private/corpus", "logging.wandb=off")
    [folder] = export_model(run, tmp_path / "out")
    texts = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert not [name for name, text in texts.items() if str(tmp_path).encode() in text]
    assert b"Data: corpus." in texts["README.md"]


def test_an_export_keeps_an_infinite_clip_and_a_unit_of_words(tmp_path):
    run = write_run(tmp_path / "run", "uniform_mdlm", "optimizer.clip=.inf", "data.words=characters/2")
    [folder] = export_model(run, tmp_path / "out")
    config = opened(folder).about["config"]
    assert (config["optimizer"]["clip"], config["data"]["words"]) == (math.inf, "characters/2")
    assert "(counted in the unit characters/2)" in (folder / "README.md").read_text()
    import_checkpoint(folder, out=tmp_path / "again")


def test_paths_in_options_of_plugins_are_not_published(uniform, tmp_path, monkeypatch):
    trained = opened(uniform)
    for option in ("weights", "words"):
        trained.about["config"]["plugins"]["uniform_mdlm"][option] = f"/home/ada/private/{option}.tsv"
    monkeypatch.setattr(export_model_module, "open_model", lambda *_, **__: trained)
    [folder] = export_model(uniform, tmp_path / "out")
    card = (folder / "README.md").read_text()
    assert "weights.tsv" in card
    assert "words.tsv" in card
    assert "/home/ada" not in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_rate": "constant"}, "--constant-rate goes with"),
        ({"mask_rate": "zero", "constant_rate": 0.1}, "--constant-rate goes with"),
        ({"mask_rate": "constant", "constant_rate": 1.5}, "between 0 and 1"),
        ({"revisions": True}, "no checkpoints by words seen"),
    ],
)
def test_options_that_do_not_fit_are_errors_and_nothing_is_written(options, message, uniform, tmp_path):
    with pytest.raises(UserError, match=message):
        export_model(uniform, tmp_path / "out", **options)
    assert not os.listdir(tmp_path)


def test_a_mask_rate_for_a_model_without_time_conditioning_is_refused(hybrid, tmp_path):
    with pytest.raises(UserError, match="no time conditioning"):
        export_model(hybrid, tmp_path / "out", mask_rate="zero")
    assert not os.listdir(tmp_path)


def test_an_output_folder_with_something_in_it_is_left_alone(uniform, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty"):
        export_model(uniform, tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_the_command_prints_the_folders_to_load_models_from(uniform, run, tmp_path):
    code, out, _ = run("export", str(uniform), "--out", str(tmp_path / "out"), "--constant-rate", "0.2")
    assert (code, out) == (0, f"{tmp_path / 'out'}\n")
    assert config_of(tmp_path / "out")["mask_rate"] == "constant"
    code, _, err = run("export", str(uniform), "--out", str(tmp_path / "out"))
    assert code == 2
    assert "is not empty" in err


def test_an_empty_output_folder_is_filled(uniform, tmp_path):
    assert export_model(uniform, tmp_path)[0] == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_the_current_folder_is_refused(uniform, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is the current folder"):
        export_model(uniform, Path("."))


def test_a_folder_name_with_a_dot_is_refused(uniform, tmp_path):
    with pytest.raises(UserError, match="without dots"):
        export_model(uniform, tmp_path / "model-v1.0")


@pytest.mark.parametrize("part", ["model", "ema"])
def test_a_damaged_checkpoint_is_not_exported(part, tmp_path):
    run = write_run(tmp_path / "run")
    (run / "checkpoints" / "step_0000001" / f"{part}.safetensors").unlink()
    with pytest.raises(UserError, match=rf"{part}\.safetensors is missing"):
        export_model(run / "checkpoints" / "step_0000001", tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json:1: not JSON"),
        ("config.json", "[" * 100_000, "config.json:1: JSON nested too deeply"),
        ("training.json", '{"step": "three"}', "training.json: step cannot be 'three'"),
        ("config.json", '{"hidden_size": 24}', "config.json: not the sizes of a model"),
        ("config.json", '{"model_type": "gpt2"}', "a model of type 'gpt2', which `ltg-mdlm export` did not write"),
        ("model.safetensors", "", "model.safetensors cannot be read"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer file"),
    ],
)
def test_a_broken_export_does_not_open(file, content, message, uniform, tmp_path):
    [folder] = export_model(uniform, tmp_path / "out")
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        opened(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", "24", "not the sizes of a model: hidden_size cannot be '24'"),
        ("num_hidden_layers", 10**9, "config.json has other sizes than the weights"),
        ("vocab_size", 10**15, "config.json has other sizes than the weights"),
        ("max_position_embeddings", 10**12, "max_position_embeddings must be in"),
        ("layer_norm_eps", math.nan, "'layer_norm_eps' must be a finite number, not nan"),
        ("num_attention_heads", 10**30, "'num_attention_heads' is a number of more than 64 bits"),
        ("predicts", "nxet", "predicts must be same or next, not 'nxet'"),
        ("backends", 3, "backends must be a list of names, not 3"),
        ("rate_intervals", "many", "rate_table.value_at_node is missing or has the wrong length"),
    ],
)
def test_a_wrong_value_in_the_config_of_an_export_is_named(key, value, message, uniform, tmp_path):
    [folder] = export_model(uniform, tmp_path / "out")
    (folder / "config.json").write_text(json.dumps(config_of(folder) | {key: value}))
    with pytest.raises(UserError, match=message):
        opened(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_of_an_export_is_named(file, uniform, tmp_path):
    [folder] = export_model(uniform, tmp_path / "out")
    (folder / file).unlink()
    with pytest.raises(UserError, match=re.escape(file)):
        opened(folder)


def test_a_plugins_own_embedding_is_exported_with_relative_imports(embedding_plugin, tmp_path):
    run = write_run(tmp_path / "run", "embedding")
    [folder] = export_model(run, tmp_path / "out")
    source = (EMBEDDING_PLUGIN / "polynomial_embedding.py").read_text()
    expected = source.replace("from ltg_mdlm.model.transformer import", "from .transformer import")
    assert (folder / "time_embedding.py").read_text() == expected + "\nEMBEDDING = Polynomial\n"
    assert config_of(folder)["time_embedding"] == "Polynomial"
    conditioning_B = torch.rand(5)
    assert torch.equal(opened(folder).model.sigma_map(conditioning_B), opened(run).model.sigma_map(conditioning_B))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("beside_the_plugin", r"embedding_plugin.py:\d+ imports ltg_mdlm_plugins.conditioning"),
        ("from_torch", r"torch.nn.modules.container.Sequential cannot be exported: .* imports"),
        ("forgetful", "computes something else\n.*persistent buffers"),
        ("scaled", "fails: TypeError: .*'scale'"),
    ],
)
def test_an_embedding_that_cannot_be_exported_is_an_error_that_says_why(name, message, embedding_plugin, tmp_path):
    run = write_run(tmp_path / "run", "embedding", f"plugins.embedding.embedding={name}")
    with pytest.raises(UserError, match=message):
        export_model(run, tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]
