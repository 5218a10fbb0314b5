"""`ltg-mdlm eval download`, in processes of its own, from a local server in place of the Hugging Face Hub."""

import base64
import io
import json
import os
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
from support.dataset_server import DatasetServer
from support.lm_eval import lm_eval_installed as lm_eval_installed

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.evaluation.download import DATASETS, FAST, FULL, download, write_ewok

pytest.importorskip("huggingface_hub")

PAIR = b'{"sentence_good": "It is.", "sentence_bad": "It are.", "UID": "agreement"}\n'
EWOK_FAST = base64.b64decode(
    "UEsDBAoACQAAANaifF1Q/ic6LAAAACAAAAA7AAAAZXZhbHVhdGlvbl9kYXRhL2Zhc3RfZXZhbC9ld29rX2Zhc3Qvc3BhdGlhbC1y"
    "ZWxhdGlvbnMuanNvbmxvUBPxb2zskMtOWtDjgvjF73UGl6ucUGp2T65Mp3hAEXITS1IWF2bvwpeiq1BLBwhQ/ic6LAAAACAAAABQ"
    "SwECHgMKAAkAAADWonxdUP4nOiwAAAAgAAAAOwAAAAAAAAABAAAApIEAAAAAZXZhbHVhdGlvbl9kYXRhL2Zhc3RfZXZhbC9ld29r"
    "X2Zhc3Qvc3BhdGlhbC1yZWxhdGlvbnMuanNvbmxQSwUGAAAAAAEAAQBpAAAAlQAAAAAA"
)
"""An archive of one file with the published password, made by `zip -P BabyLM2025` (which zipfile cannot make)."""
PIQA = {
    "parallel": "prompt\tsolution0\tsolution1\tsolution2\tsolution3\tlabel\texample_id\n"
    '"A ""big"" é"\ta\tb\tc\td\t3\tp_1\n',
    "nonparallel": "prompt\tsolution0\tsolution1\tlabel\texample_id\nA cup\ta\tb\t1\tn_1\n",
}


@pytest.fixture
def hub():
    """Small datasets with the names and the layout of the published ones."""
    strict = {f"{folder}/data.jsonl": PAIR for folder in DATASETS["strict"].folders if folder.name != "ewok_fast"}
    strict |= {f"{FAST}/ewok_fast.zip": EWOK_FAST, "README.md": b"not needed"}
    datasets = {DATASETS["strict"].repo: strict}
    for split, table in PIQA.items():
        dataset = DATASETS[f"global_piqa_{split}"]
        datasets[dataset.repo] = {dataset.files: table.encode(), f"data/{split}_deu_latn.tsv": b"not needed"}
    with DatasetServer(datasets).running() as server:
        yield server


@pytest.fixture
def call(hub, tmp_path):
    """Run the command for the folder `data`: (exit code, standard output, messages)."""

    def run(*arguments, **environment):
        done = subprocess.run(
            [sys.executable, "-m", "ltg_mdlm", "eval", "download", *arguments, "--out", str(tmp_path / "data")],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ
            | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
            | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": ""}
            | environment,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


def test_everything_lies_where_the_suite_and_the_official_pipeline_look(call, tmp_path):
    code, out, err = call()
    assert code == 0, err
    data = tmp_path / "data"
    for name in ("strict", "global_piqa_parallel", "global_piqa_nonparallel"):
        assert name in out
        for folder in DATASETS[name].folders:
            assert list((data / folder).iterdir()), folder
    assert not (data / "README.md").exists()
    ewok = [
        json.loads(line) for line in (data / FAST / "ewok_fast" / "spatial-relations.jsonl").read_text().splitlines()
    ]
    assert ewok == [{"Domain": "spatial-relations"}]
    for part in (FULL, FAST):
        rows = [json.loads((data / part / f"global_piqa_{split}" / "eng_latn.jsonl").read_text()) for split in PIQA]
        options = {"solution0": "a", "solution1": "b"}
        assert rows == [
            {"prompt": 'A "big" é', **options, "solution2": "c", "solution3": "d", "label": 3, "example_id": "p_1"},
            {"prompt": "A cup", **options, "label": 1, "example_id": "n_1"},
        ]
    assert f"--data {data / FULL}" in out


def test_only_files_that_are_missing_are_loaded_again(hub, call, tmp_path):
    assert call("strict")[0] == 0
    (tmp_path / "data" / FULL / "comps" / "data.jsonl").unlink()
    hub.sent.clear()
    assert call("strict")[0] == 0
    assert hub.sent == [f"{FULL}/comps/data.jsonl"]


def test_a_download_that_failed_midway_goes_on_with_the_files_that_are_missing(hub, call, tmp_path):
    path = f"{FULL}/comps/data.jsonl"
    hub.broken.add(path)
    code, _, err = call("strict")
    assert code == 2
    assert "error: strict: the Hugging Face Hub refused https://huggingface.co/datasets/BabyLM-community/" in err
    hub.broken.clear()
    assert call("strict")[0] == 0
    assert (tmp_path / "data" / path).read_bytes() == PAIR
    assert len(hub.sent) == len(set(hub.sent)) == len(DATASETS["strict"].folders)


def test_an_absent_dataset_is_named_and_the_others_are_loaded(hub, call, tmp_path):
    del hub.datasets[DATASETS["strict"].repo]
    code, out, err = call()
    assert code == 2
    assert "error: strict: there is no dataset BabyLM-community/BabyLM-2026-Strict-Evals" in err
    assert err.count("error: ") == 1
    for split in PIQA:
        assert (tmp_path / "data" / FULL / f"global_piqa_{split}" / "eng_latn.jsonl").is_file()
        assert f"global_piqa_{split}" in out


def test_a_damaged_archive_says_what_to_do(hub, call):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.jsonl", b"x y z " * 100)
    damaged = bytearray(content.getvalue())
    damaged[45] ^= 0xFF  # compressed bytes of the file
    hub.datasets[DATASETS["strict"].repo][f"{FAST}/ewok_fast.zip"] = bytes(damaged)
    code, _, err = call("strict")
    assert code == 2
    assert "ewok_fast.zip cannot be unpacked: " in err
    assert "delete it and run the command again" in err


def test_gated_and_changed_datasets_say_what_to_do(hub, call):
    hub.datasets[DATASETS["strict"].repo].pop(f"{FULL}/comps/data.jsonl")
    hub.gated.add(DATASETS["global_piqa_parallel"].repo)
    hub.datasets[DATASETS["global_piqa_nonparallel"].repo].pop("data/nonparallel_eng_latn.tsv")
    code, _, err = call()
    assert code == 2
    strict, parallel, nonparallel = err.split("error: ")[1:]
    assert f"strict: {DATASETS['strict'].url} was downloaded, but has no {FULL}/comps\n" in strict
    assert "https://huggingface.co/datasets/mrlbenchmarks/global-piqa-parallel and accept its conditions" in parallel
    assert "hf auth login" in parallel
    assert "has no data/nonparallel_eng_latn.tsv\n  the dataset may have changed" in nonparallel


def test_offline_every_dataset_and_the_folders_to_copy_are_named(call, tmp_path):
    (tmp_path / "data" / "other").mkdir(parents=True)  # huggingface_hub takes any folder for the dataset then
    code, _, err = call("strict", "global_piqa_parallel", HF_HUB_OFFLINE="1")
    assert code == 2
    assert err.count("HF_HUB_OFFLINE disables access") == 2
    for name in ("strict", "global_piqa_parallel"):
        assert DATASETS[name].url in err
        for folder in DATASETS[name].folders:
            assert f"    {tmp_path / 'data' / folder}\n" in err


def test_a_hub_that_cannot_be_reached_is_no_traceback(run, tmp_path, monkeypatch):
    def unreachable(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    code, _, err = run("eval", "download", "strict", "--out", str(tmp_path))
    assert code == 2
    assert f"{DATASETS['strict'].url} cannot be reached: no route to host\n  run the command again" in err
    assert f"    {tmp_path / FULL / 'blimp_filtered'}\n" in err


def test_names_that_do_not_exist_are_refused(run, tmp_path):
    code, _, err = run("eval", "download", "blimp", "--out", str(tmp_path))
    assert code == 2
    assert "blimp: no such evaluation data\n  there are: strict, global_piqa_parallel" in err


def test_ewok_needs_the_vocabulary(run, tmp_path):
    code, _, err = run("eval", "download", "ewok", "--out", str(tmp_path))
    assert code == 2
    assert "add --ewok-vocabulary FILE" in err


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "ltg-mdlm\[hub\]"'):
        download((), tmp_path, done=print)


def test_ewok_keeps_items_of_known_words_and_asks_both_directions(lm_eval_installed, monkeypatch, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def item(domain, *texts):
        return dict(zip(("Domain", "Context1", "Context2", "Target1", "Target2"), (domain, *texts), strict=True))

    items = [item("social", "The A.", "The B.", "x", "y"), item("social", "The Q.", "The B.", "x", "y")]
    items.append(item("spatial", "a", "b", "the x", "the y"))
    parquet.write_table(pyarrow.Table.from_pylist(items), tmp_path / "items.parquet")
    tokenizer = SimpleNamespace(word_tokenize=lambda text: text.replace(".", " .").split())
    monkeypatch.setitem(sys.modules, "nltk", tokenizer)
    write_ewok(tmp_path / "items.parquet", frozenset(["the", "a", "b", "x", "y", "."]), tmp_path / "ewok_filtered")
    files = (tmp_path / "ewok_filtered").iterdir()
    found = {file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in files}
    assert found == {
        "social.jsonl": [items[0], item("social", "The B.", "The A.", "y", "x")],
        "spatial.jsonl": [items[2], item("spatial", "b", "a", "the y", "the x")],
    }
    with pytest.raises(UserError, match="no item is left"):
        write_ewok(tmp_path / "items.parquet", frozenset(), tmp_path / "empty")


def test_ewok_says_how_to_get_the_data_that_nltk_needs(lm_eval_installed, monkeypatch, tmp_path):
    pytest.importorskip("nltk")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    table = pyarrow.Table.from_pylist(
        [{"Domain": "x", "Context1": "a", "Context2": "a", "Target1": "a", "Target2": "a"}]
    )
    parquet.write_table(table, tmp_path / "items.parquet")
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(UserError, match=r"python -m nltk\.downloader punkt_tab"):
        write_ewok(tmp_path / "items.parquet", frozenset("a"), tmp_path / "out")
