"""`training.precision: auto`: what is chosen, that measuring changes nothing else, and that a run keeps its choice."""

import re

import pytest
import yaml
from support import runs
from support.runs import SCORED, TINY, launch_quietly, losses, rows, saved_bits
from support.runs import run as train

from ltg_mdlm.core.config import RunConfig
from ltg_mdlm.core.settings import config_folders, load_settings
from ltg_mdlm.storage.run_folder import RunFolder
from ltg_mdlm.testing.ranks import run_on_ranks
from ltg_mdlm.training import assembly, precision
from ltg_mdlm.training.bench import bench
from ltg_mdlm.training.sweep import open_sweep

AUTO = "training.precision=auto"
STEPS = 12
CONFIGS = sorted(path.stem for folder in config_folders() for path in folder.glob("*.yaml"))
SWEEPS = sorted(path.stem for folder in config_folders() for path in (folder / "sweeps").glob("*.yaml"))


BF16_FASTER, FP32_FASTER, EQUAL = {"fp32": 0.2, "bf16": 0.1}, {"fp32": 0.1, "bf16": 0.2}, {"fp32": 0.1, "bf16": 0.098}


def become(native: bool, seconds: dict[str, float] | str, constants: dict[str, float]) -> None:
    """Pretend that the processor has native bf16 or not, and needs so many seconds for a pass."""

    def pass_seconds(run) -> dict[str, float]:
        assert seconds != "never", "measured"
        return seconds

    precision.native_bf16 = lambda device: native
    if seconds != "real":
        precision.pass_seconds = pass_seconds
    for name, value in constants.items():
        setattr(precision, name, value)


def launch_on(rank, processor, *arguments):
    """`launch_quietly` on such a processor."""
    become(*processor)
    return launch_quietly(rank, *arguments)


@pytest.fixture
def processor(monkeypatch):
    """Changes the processor of this process, and of those that it trains in."""

    def change(*, native=True, seconds="never", **constants) -> None:
        for name in ("native_bf16", "pass_seconds", *constants):
            monkeypatch.setattr(precision, name, getattr(precision, name))  # restored after the test
        described = (native, seconds, constants)
        become(*described)

        def on_ranks(function, processes, *arguments, **options):
            return run_on_ranks(launch_on, processes, described, *arguments, **options)

        monkeypatch.setattr(runs, "run_on_ranks", on_ranks)

    return change


def stored(out) -> str:
    return yaml.safe_load((out / "config.yaml").read_text())["training"]["precision"]


@pytest.mark.parametrize(("seconds", "chosen"), [(BF16_FASTER, "bf16"), (FP32_FASTER, "fp32"), (EQUAL, "fp32")])
def test_bf16_is_chosen_if_it_is_clearly_faster(seconds, chosen, tmp_path, processor):
    processor(seconds=seconds)
    outcome = train(tmp_path / "run", AUTO, "training.max_steps=1")[0]
    assert stored(tmp_path / "run") == chosen
    times = ", ".join(f"{name} {1000 * value:.1f} ms" for name, value in seconds.items())
    assert f"precision: {chosen} (measured forward and backward pass: {times})\n" in outcome.output
    assert f"parameters, {chosen} on cpu" in outcome.output


def test_without_native_bf16_nothing_is_measured_and_training_is_in_fp32(tmp_path, processor):
    processor(native=False)
    assert train(tmp_path / "auto", AUTO)[0].code == 0
    assert train(tmp_path / "fp32")[0].code == 0
    assert stored(tmp_path / "auto") == "fp32"
    assert saved_bits(tmp_path / "auto", STEPS) == saved_bits(tmp_path / "fp32", STEPS)


@pytest.mark.parametrize(("plugin", "processes"), [("uniform_mdlm", 1), ("gpt_bert", 1), ("faulty", 2)])
def test_measuring_leaves_no_trace_in_the_run(plugin, processes, tmp_path, processor):
    """With dropout, which uses the random number generator, and with the state of an adaptive plugin."""
    processor(seconds="real", MIN_SPEEDUP=1e9)
    sets = ("model.dropout=0.1", *SCORED)
    outcome = train(tmp_path / "auto", AUTO, *sets, plugin=plugin, processes=processes)[0]
    assert outcome.code == 0
    assert re.search(r"precision: fp32 \(measured .*: fp32 [\d,.]+ ms, bf16 [\d,.]+ ms\)\n", outcome.output)
    train(tmp_path / "fp32", *sets, plugin=plugin, processes=processes)
    assert losses(tmp_path / "auto") == losses(tmp_path / "fp32")
    assert saved_bits(tmp_path / "auto", STEPS) == saved_bits(tmp_path / "fp32", STEPS)
    validated = [[row for row in rows(tmp_path / name) if "valid/loss" in row] for name in ("auto", "fp32")]
    assert validated[0] == validated[1]


def test_all_ranks_train_in_the_precision_that_the_first_one_chose(tmp_path, processor):
    processor(seconds=BF16_FASTER)
    outcomes = train(tmp_path / "auto", AUTO, processes=2)
    assert ["precision: bf16" in outcome.output for outcome in outcomes] == [True, False]
    assert train(tmp_path / "bf16", "training.precision=bf16", processes=2)[0].code == 0
    assert saved_bits(tmp_path / "auto", STEPS) == saved_bits(tmp_path / "bf16", STEPS)


def test_a_large_model_is_measured_with_fewer_passes(tmp_path, processor):
    processor(seconds="real", MAX_SECONDS=0.0)
    assert "precision: " in train(tmp_path / "run", AUTO, "training.max_steps=1")[0].output


def preempted(out, *sets, at="step 5"):
    assert train(out, *sets, faults=({"at": at, "do": "SIGTERM"},))[0].code == 75


def test_a_resumed_run_keeps_its_precision(tmp_path, processor):
    processor(seconds=BF16_FASTER)
    preempted(tmp_path / "run", AUTO)
    processor()
    assert train(tmp_path / "run", AUTO)[0].code == 0
    assert stored(tmp_path / "run") == "bf16"
    train(tmp_path / "bf16", "training.precision=bf16")
    assert saved_bits(tmp_path / "run", STEPS) == saved_bits(tmp_path / "bf16", STEPS)
    assert "is finished" in train(tmp_path / "run", AUTO)[0].output


def test_a_run_that_resumes_with_its_own_config_keeps_the_shapes_that_dropout_draws_for(
    tmp_path, processor, monkeypatch
):
    """auto may mean bf16, so the run starts with full micro-batches; its config.yaml has the fp32 that was measured."""
    sets = ("model.dropout=0.1", "training.global_batch_rows=5", "training.micro_batch_rows=3")
    monkeypatch.setattr(assembly, "bf16_for", lambda precision, _: precision != "fp32")
    processor(seconds=FP32_FASTER)
    assert train(tmp_path / "straight", AUTO, *sets)[0].code == 0
    preempted(tmp_path / "run", AUTO, *sets)
    assert train(tmp_path / "run", "training.precision=fp32", *sets)[0].code == 0
    assert saved_bits(tmp_path / "run", STEPS) == saved_bits(tmp_path / "straight", STEPS)


def test_a_run_that_resumes_a_checkpoint_of_another_folder_keeps_its_precision(tmp_path, processor):
    processor(seconds=BF16_FASTER)
    preempted(tmp_path / "first", AUTO)
    processor()
    assert train(tmp_path / "second", AUTO, resume=str(tmp_path / "first"))[0].code == 0
    assert stored(tmp_path / "second") == "bf16"


def test_a_run_cannot_be_resumed_in_another_precision(tmp_path, processor):
    processor(seconds=BF16_FASTER)
    preempted(tmp_path / "run", AUTO)
    outcome = train(tmp_path / "run", "training.precision=fp32")[0]
    assert outcome.code is None
    assert "belongs to a run with other settings: training.precision" in outcome.output


@pytest.mark.parametrize(("native", "kept"), [(True, "bf16"), (False, "fp32")])
def test_a_run_of_an_older_version_keeps_what_auto_meant_there(native, kept, tmp_path, processor):
    """It stored auto, which meant bf16 wherever that is native."""
    preempted(tmp_path / "run", f"training.precision={kept}")
    folder = RunFolder(tmp_path / "run")
    config = RunConfig.model_validate(yaml.safe_load(folder.read_config()))
    older = config.model_copy(update={"training": config.training.model_copy(update={"precision": "auto"})})
    folder.write_config(older.to_yaml())
    processor(native=native)
    assert train(tmp_path / "run", AUTO)[0].code == 0
    assert stored(tmp_path / "run") == kept
    train(tmp_path / "whole", f"training.precision={kept}")
    assert saved_bits(tmp_path / "run", STEPS) == saved_bits(tmp_path / "whole", STEPS)


def test_bench_resolves_auto_as_the_trainer_does(processor):
    processor(seconds=BF16_FASTER)
    for wanted, measured in (("auto", "bf16"), ("fp32", "fp32")):
        report = bench(load_settings((), [*TINY, f"training.precision={wanted}"]), steps=3)
        assert report is not None
        assert report.precision == measured


def test_check_measures_nothing_and_says_when_auto_is_resolved(run, processor):
    processor()
    sets = [part for text in (*TINY, AUTO) for part in ("--set", text)]
    code, out, err = run("check", *sets)
    assert code == 0, err
    assert "precision    auto (decided by measurement at start)\n" in out
    assert "precision    fp32\n" in run("check", *sets, "--set", "training.precision=fp32")[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_published_configs_fix_their_precision(name):
    assert load_settings([name]).config.training.precision == ("auto" if name.startswith("laptop") else "bf16")


@pytest.mark.parametrize("name", SWEEPS)
def test_the_points_of_named_sweeps_all_have_the_same_fixed_precision(name):
    sweep = open_sweep(name)
    precisions = {sweep.settings(point).config.training.precision for point in sweep.points}
    assert precisions in ({"fp32"}, {"bf16"})
