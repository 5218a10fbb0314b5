"""Settings: order of precedence, and error messages."""

from pathlib import Path

import pytest

from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.core.settings import config_folders, load_settings
from ltg_mdlm.host.plugin_host import Host
from ltg_mdlm.training.consistency import differing_keys

NAMED = sorted(path.stem for folder in config_folders() for path in folder.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMED)
def test_every_named_config_is_valid(name):
    settings = load_settings([name])
    host = Host(settings.config, settings.sources)
    assert host.config.name == name
    assert host.check_config() == []


def test_command_line_wins_over_files_and_later_files_win(tmp_path: Path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("seed: 1\noptimizer: {lr: 0.1, clip: 3.0}\n")
    second.write_text("seed: 2\noptimizer: {lr: 0.2}\n")
    config = load_settings([str(first), str(second)], ["optimizer.lr=0.3"]).config
    assert (config.seed, config.optimizer.lr, config.optimizer.clip) == (2, 0.3, 3.0)
    assert config.name == "b"


def test_a_config_extends_another_one(tmp_path: Path):
    child = tmp_path / "child.yaml"
    child.write_text("extends: freq_cosine\nseed: 7\n")
    config = load_settings([str(child)]).config
    assert (config.seed, config.training.global_batch_rows, config.plugins["freq_mdlm"]["power"]) == (7, 1024, 0.02)


def test_a_config_that_extends_itself_is_an_error(tmp_path: Path):
    loop = tmp_path / "loop.yaml"
    loop.write_text(f"extends: {loop}\n")
    with pytest.raises(UserError, match="extends itself"):
        load_settings([str(loop)])


def test_a_plugin_named_without_options_is_selected(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("plugins:\n  freq_mdlm:\n")
    assert load_settings([str(path)]).config.plugins == {"freq_mdlm": {}}


def test_plugin_flag_adds_to_the_config():
    config = load_settings(["laptop"], plugins=["freq_mdlm"]).config
    assert list(config.plugins) == ["uniform_mdlm", "freq_mdlm"]
    assert config.run_folder() == Path("runs/laptop-freq_mdlm-s0")


@pytest.mark.parametrize(
    ("sets", "parts"),
    [
        (["trainig.max_steps=3"], ["trainig: no such setting (did you mean 'training'?)", "--set trainig.max_steps=3"]),
        (
            ["training.max_step=3"],
            ["training.max_step: no such setting (did you mean 'max_steps'?)", "settings of training:"],
        ),
        (["training.max_steps=many"], ["training.max_steps:", "'many'", "--set training.max_steps=many"]),
        (["training.seq_len=1024"], ["1024 tokens are longer than model.max_position_embeddings 512"]),
        (["training.epochs=3"], ["either training.max_steps or training.epochs"]),
        (["training.seq_len_schedule=[[0.5,64]]"], ["must start at progress 0"]),
        (["model.num_attention_heads=5"], ["not a multiple of num_attention_heads 5"]),
        (["data.train=x.bin"], ["data.train needs data.tokenizer"]),
        (["seed"], ["expected key.path=value"]),
        (["seed=["], ["not valid YAML"]),
    ],
)
def test_mistakes_are_named_with_their_place(sets, parts):
    with pytest.raises(UserError) as error:
        load_settings((), sets)
    assert all(part in str(error.value) for part in parts), str(error.value)


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("optimizer: {lrr: 1}\n")
    with pytest.raises(UserError, match=r"(?s)did you mean 'lr'.*set in .*mine\.yaml"):
        load_settings([str(path)])


def test_unknown_config_suggests_a_named_one():
    with pytest.raises(UserError, match="did you mean 'freq_cosine'"):
        load_settings(["freq_cosin"])


def test_a_missing_file_is_not_replaced_by_a_config_of_its_name(tmp_path):
    with pytest.raises(UserError, match=r"mine/freq_cosine\.yaml: no such file or named config"):
        load_settings(["mine/freq_cosine.yaml"])
    assert load_settings(["configs/freq_cosine.yaml"]).config == load_settings(["freq_cosine"]).config


def test_numbers_in_scientific_notation_are_numbers():
    """YAML 1.1 reads 1e-3, without a dot, as text."""
    assert load_settings((), ["optimizer.lr=1e-3"]).config.optimizer.lr == 1e-3


def test_wandb_off_is_not_the_boolean_false():
    assert load_settings((), ["logging.wandb=off"]).config.logging.wandb == "off"


def test_resolved_settings_read_back_to_the_same(tmp_path: Path):
    config = load_settings(["gpt_bert_100m"], ["run.out=x"]).config
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    again = load_settings([str(path)]).config
    assert again.model_copy(update={"name": config.name}) == config


def test_only_settings_that_change_what_is_trained_differ():
    old = load_settings().config
    sets = ["seed=3", "logging.every=7", "training.micro_batch_rows=2", "optimizer.lr=0.5", "run.init_from=base"]
    new = load_settings((), sets).config
    assert differing_keys(old, new) == ["optimizer.lr", "run.init_from", "seed"]
    assert differing_keys(old, RunConfig.model_validate(old.model_dump())) == []
