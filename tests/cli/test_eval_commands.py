"""`ltg-mdlm eval pairs` and `eval suite`, on small models and small files."""

import json
import math

import pytest
from support.trained import write_run

PAIRS = [
    {"sentence_good": "The dogs run.", "sentence_bad": "The dogs runs.", "UID": "agreement", "field": "morphology"},
    {"sentence_good": "A cat saw it.", "sentence_bad": "A cat see it.", "UID": "agreement", "field": "morphology"},
    {"sentence_good": "Who is it?", "sentence_bad": "Is it who?", "UID": "order", "field": "syntax"},
    {"sentence_good": "It is.", "sentence_bad": "It is.", "UID": "order", "field": "syntax"},
]
WUG = [
    {"sentences": "wug wugged\twug wugt", "ratio": 0.9},
    {"sentences": "gling glinged\tgling glang", "ratio": 0.4},
    {"sentences": "bize bized\tbize boze", "ratio": 0.7},
]


def write_rows(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation_data")
    write_rows(folder / "blimp_fast" / "pairs.jsonl", PAIRS)
    write_rows(folder / "wug_past_tense" / "wug.jsonl", WUG)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {plugin: write_run(folder / plugin, plugin) for plugin in ("freq_mdlm", "gpt_bert")}


BLIMP = "blimp/blimp_fast"


@pytest.mark.parametrize(
    ("plugin", "options", "backend"),
    [
        ("freq_mdlm", (), "mlm"),
        ("freq_mdlm", ("--score", "bound", "--draws", "4"), "bound"),
        ("gpt_bert", (), "mntp"),
        ("gpt_bert", ("--score", "causal"), "causal"),
    ],
)
def test_pairs_writes_official_predictions_and_every_score(run, data, models, tmp_path, plugin, options, backend):
    code, out, err = run("eval", "pairs", str(models[plugin]), "--data", str(data), "--out", str(tmp_path), *options)
    assert (code, "blimp_fast" in out) == (0, True), err
    folder = tmp_path / plugin / "main" / "zero_shot" / backend / BLIMP
    predictions = json.loads((folder / "predictions.json").read_text())
    assert [row["id"] for row in predictions["agreement"]["predictions"]] == ["agreement_0", "agreement_1"]
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    for item, pair in zip(items, PAIRS, strict=True):
        good, bad = item["log_likelihoods"]
        assert item["correct"] == (0.5 if good == bad else float(good > bad))
        pred = predictions[item["uid"]]["predictions"][int(item["id"].rpartition("_")[2])]["pred"]
        assert pred == pair["sentence_bad" if bad > good else "sentence_good"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["accuracy"] == pytest.approx(sum(summary["accuracy_by_uid"].values()) / 2)
    assert summary["tie_rate"] == 0.25
    assert (summary["model"], summary["revision"], summary["weights"]) == (plugin, "main", "ema")
    assert ("standard_errors" in items[0]) == ("undecided_rate" in summary) == (backend == "bound")


def test_the_table_shows_every_uid_on_request(run, data, models, tmp_path):
    arguments = ("eval", "pairs", str(models["freq_mdlm"]), "--data", str(data), "--out", str(tmp_path))
    assert "agreement" not in run(*arguments)[1]
    assert "agreement" in run(*arguments, "--by-uid")[1]


def test_averaged_and_last_weights_are_different_models(run, data, models, tmp_path):
    found = {}
    for weights in ("ema", "raw"):
        out = tmp_path / weights
        run("eval", "pairs", str(models["freq_mdlm"]), "--data", str(data), "--out", str(out), "--weights", weights)
        found[weights] = (out / "freq_mdlm" / "main" / "zero_shot" / "mlm" / BLIMP / "items.jsonl").read_text()
    assert found["ema"] != found["raw"]


def test_the_suite_runs_tasks_with_data_and_lists_skipped_ones(run, data, models, tmp_path):
    code, out, err = run(
        *("eval", "suite", str(models["freq_mdlm"]), "--data", str(data), "--out", str(tmp_path), "--json"),
        *("--protocol", "2025"),
    )
    assert code == 0, err
    by_task = {row["task"]: row for row in json.loads(out)}
    assert by_task["blimp"]["status"] == by_task["wug_past"]["status"] == "done"
    assert json.loads((tmp_path / "freq_mdlm" / "main" / "suite.json").read_text())["protocol"] == "2025"
    assert by_task["ewok"]["status"] == "skipped"
    assert by_task["ewok"]["reason"]
    kept = json.loads((tmp_path / "freq_mdlm" / "main" / "suite.json").read_text())
    assert kept["tasks"] == list(by_task.values())
    assert math.isfinite(by_task["wug_past"]["value"])


def test_a_malformed_row_fails_its_task_alone_and_leaves_nothing_behind(run, models, tmp_path):
    write_rows(tmp_path / "data" / "blimp_fast" / "pairs.jsonl", [PAIRS[0], {"sentence_good": "A dog."}])
    write_rows(tmp_path / "data" / "wug_past_tense" / "wug.jsonl", WUG)
    code, _, err = run(
        *("eval", "suite", str(models["freq_mdlm"]), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")),
        *("--protocol", "2025"),
    )
    assert code == 2
    assert "pairs.jsonl:2: sentence_bad" in err
    written = {path.name for path in (tmp_path / "out").rglob("*") if path.is_dir()}
    assert "wug_past_tense" in written
    assert "blimp" not in written


@pytest.mark.parametrize(
    ("plugin", "options", "complaint"),
    [
        ("freq_mdlm", ("--score", "causal"), "needs a model trained on causal rows"),
        ("freq_mdlm", ("--score", "mntp"), "use --score pll"),
        ("gpt_bert", ("--score", "pll"), "use --score mntp"),
        ("freq_mdlm", ("--score", "bound", "--draws", "3"), "even number"),
        ("freq_mdlm", ("--draws", "4"), "--draws goes with --score bound"),
        ("freq_mdlm", ("--time", "constant"), "--rate goes with --time constant"),
        ("freq_mdlm", ("--rate", "0.3"), "--rate goes with --time constant"),
    ],
)
def test_a_score_that_does_not_fit_the_model_is_a_user_error(run, data, models, tmp_path, plugin, options, complaint):
    out = tmp_path / "out"
    code, _, err = run("eval", "pairs", str(models[plugin]), "--data", str(data), "--out", str(out), *options)
    assert (code, complaint in err, out.exists()) == (2, True, False), err


def test_folders_without_a_model_or_data_are_a_user_error(run, data, models, tmp_path):
    for model, where in ((tmp_path, data), (models["freq_mdlm"], tmp_path), (models["freq_mdlm"], tmp_path / "gone")):
        code, _, err = run("eval", "pairs", str(model), "--data", str(where), "--out", str(tmp_path / "out"))
        assert (code, err.startswith("error: ")) == (2, True), err
    assert not (tmp_path / "out").exists()


def test_a_run_without_its_tokenizer_is_a_user_error(run, data, tmp_path):
    model = write_run(tmp_path / "run")
    (model / "tokenizer.json").unlink()
    code, _, err = run("eval", "pairs", str(model), "--data", str(data), "--out", str(tmp_path / "out"))
    assert (code, "no tokenizer" in err) == (2, True), err


def test_settings_of_another_version_are_named(run, data, tmp_path):
    model = write_run(tmp_path / "run")
    (state,) = model.glob("checkpoints/*/state.json")
    about = json.loads(state.read_text())
    about["config"]["validation"]["old_name"] = 3
    del about["digest"], about["digest_of"]  # as old versions wrote it
    state.write_text(json.dumps(about))
    code, _, err = run("eval", "pairs", str(model), "--data", str(data), "--out", str(tmp_path / "out"))
    assert (code, "other settings" in err, "validation.old_name: no such setting" in err) == (2, True, True), err


def test_an_output_folder_that_cannot_be_written_is_refused_before_scoring(run, data, models, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("ltg_mdlm.evaluation.suite.run_suite", lambda *_: pytest.fail("scored"))
    arguments = ("--data", str(data), "--out", str(tmp_path / "file" / "results"))
    code, _, err = run("eval", "pairs", str(models["freq_mdlm"]), *arguments)
    assert (code, str(tmp_path / "file") in err) == (2, True), err


def test_the_protocol_decides_what_ewok_asks(run, models, tmp_path):
    row = {"Context1": "The dog runs.", "Context2": "The cat runs.", "Target1": "It is big.", "Target2": "It is old."}
    write_rows(tmp_path / "ewok_fast" / "a.jsonl", [row | {"Domain": "d"}])
    written = {}
    for protocol in ("2026", "2025"):
        arguments = ("--data", str(tmp_path), "--out", str(tmp_path / protocol), "--protocol", protocol)
        code, _, err = run("eval", "pairs", str(models["freq_mdlm"]), *arguments)
        assert code == 0, err
        folder = tmp_path / protocol / "freq_mdlm" / "main" / "zero_shot" / "mlm" / "ewok" / "ewok_fast"
        (prediction,) = json.loads((folder / "predictions.json").read_text())["d"]["predictions"]
        written[protocol] = prediction["pred"]
        assert json.loads((folder / "summary.json").read_text())["protocol"] == protocol
    assert written["2026"] in ("The dog runs. It is big.", "The cat runs. It is big.")
    assert written["2025"] in (" It is big.", " It is old.")
