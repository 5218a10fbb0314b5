"""`hf://` datasets from a local server in place of the Hugging Face Hub, in processes of their own."""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from support.corpora import documents
from support.dataset_server import COMMIT, DatasetServer

pytest.importorskip("huggingface_hub")
pyarrow = pytest.importorskip("pyarrow")

TRAIN, VALID = documents(20), documents(8, seed=1)


def parquet(texts: list[str]) -> bytes:
    from pyarrow import parquet

    sink = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": texts, "category": ["talk"] * len(texts)}), sink)
    return sink.getvalue()


DATASETS = {
    "somebody/babylm-nld": {
        "README.md": b"---\nlicense: cc\n---\ntext",
        "data/train-00000-of-00002.parquet": parquet(TRAIN[:12]),
        "data/train-00001-of-00002.parquet": parquet(TRAIN[12:]),
        "data/validation-00000-of-00001.parquet": parquet(VALID),
    },
    "somebody/strict": {
        "childes.train.txt": "\n\n".join(TRAIN[:10]).encode(),
        "simple_wiki.train.txt": "\n\n".join(TRAIN[10:]).encode(),
    },
    "somebody/several": {
        "README.md": b"---\nconfigs:\n- config_name: nl\n  data_files:\n  - split: train\n    path: nl/*.txt\n"
        b"- config_name: zh\n  data_files:\n  - split: train\n    path: zh/*.txt\n"
        b"  - split: dev\n    path: other/d.txt\n---\n",
        "nl/a.txt": b"een twee",
        "zh/b.txt": b"een twee drie",
        "other/d.txt": b"vier",
    },
    "somebody/images": {"a.png": b"no text"},
}


@pytest.fixture
def hub():
    with DatasetServer({name: dict(files) for name, files in DATASETS.items()}).running() as server:
        yield server


@pytest.fixture
def prepare(hub, tmp_path):
    """Run the command for the corpus folder `corpus`: (exit code, description of the corpus or None, messages)."""

    def run(*arguments, **environment):
        out = tmp_path / "corpus"
        shutil.rmtree(out, ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-m", "ltg_mdlm", "prepare", *arguments, "--out", str(out), "--vocab-size", "300"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ
            | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
            | {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": ""}
            | environment,
        )
        assert "Traceback" not in done.stderr, done.stderr
        made = out / "corpus.json"
        return done.returncode, json.loads(made.read_text()) if made.is_file() else None, done.stderr

    return run


def test_the_train_and_validation_splits_are_downloaded_and_recorded_with_their_commit(prepare, hub):
    code, corpus, err = prepare("hf://somebody/babylm-nld", "--valid", "hf://somebody/babylm-nld")
    assert code == 0, err
    assert [corpus["splits"][name]["documents"] for name in ("train", "valid")] == [20, 8]
    assert corpus["source_names"] == ["babylm-nld"]
    assert {file["dataset"] for file in corpus["splits"]["train"]["sources"]} == {f"somebody/babylm-nld@{COMMIT}"}
    code, corpus, _ = prepare("hf://somebody/babylm-nld@main:validation", "--source-field", "category")
    assert (corpus["splits"]["train"]["documents"], corpus["source_names"]) == (8, ["talk"])
    assert len(hub.sent) == len(set(hub.sent))  # the second time, the cache has them


def test_text_files_of_a_dataset_are_sources(prepare):
    _, corpus, err = prepare("hf://datasets/somebody/strict")
    assert corpus["source_names"] == ["childes", "simple_wiki"], err


def test_configurations_are_chosen_by_name(prepare):
    code, _, err = prepare("hf://somebody/several")
    assert code == 2
    assert "has several configurations: nl, zh\n  choose one with hf://somebody/several:CONFIG/SPLIT" in err
    _, corpus, err = prepare("hf://somebody/several:zh/train", "--valid", "hf://somebody/several:zh/validation")
    assert [corpus["splits"][name]["words"] for name in ("train", "valid")] == [3, 1], err


def test_without_a_network_the_cache_is_used_if_it_is_complete(prepare, hub):
    prepare("hf://somebody/babylm-nld")
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        code, corpus, err = prepare("hf://somebody/babylm-nld", **environment)
        assert code == 0, err
        assert corpus["splits"]["train"]["documents"] == 20
    code, corpus, err = prepare("hf://somebody/babylm-nld:validation", HF_HUB_OFFLINE="1")
    assert (code, corpus) == (2, None)
    assert "the cache does not hold all files that are needed" in err


def test_a_damaged_list_of_files_in_the_cache_is_written_again(prepare, tmp_path):
    prepare("hf://somebody/babylm-nld")
    [listed] = (tmp_path / "hf").rglob("ltg_mdlm_files/*.json")
    listed.write_bytes(listed.read_bytes()[:-3])
    code, _, err = prepare("hf://somebody/babylm-nld", HF_HUB_OFFLINE="1")
    assert code == 2
    assert "the cache does not hold all files that are needed" in err
    assert prepare("hf://somebody/babylm-nld")[0] == prepare("hf://somebody/babylm-nld", HF_HUB_OFFLINE="1")[0] == 0


def test_a_download_that_broke_off_is_not_taken_for_a_dataset(prepare, hub):
    hub.broken.add("simple_wiki.train.txt")
    code, corpus, err = prepare("hf://somebody/strict")
    assert (code, corpus) == (2, None)
    assert "refused" in err
    code, corpus, err = prepare("hf://somebody/strict", HF_HUB_OFFLINE="1")
    assert (code, corpus) == (2, None)
    assert "it downloads the files that are missing" in err
    hub.broken.clear()
    code, corpus, err = prepare("hf://somebody/strict")
    assert code == 0, err
    assert hub.sent.count("childes.train.txt") == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://somebody/nothing", "there is no such dataset on the Hugging Face Hub, or it is private"),
        ("hf://somebody/babylm-nld:test", "no split 'test'\n  splits: train, validation"),
        ("hf://nobody", "not an address of a dataset; write hf://owner/name[@revision][:split]"),
        ("hf://somebody/images", "has no files with text, only a.png"),
        ("hf://somebody/gated", "the dataset is gated: log in at https://huggingface.co/datasets/somebody/gated"),
    ],
)
def test_what_cannot_be_downloaded_is_explained(prepare, hub, address, message):
    hub.datasets["somebody/gated"] = DATASETS["somebody/strict"]
    hub.gated.add("somebody/gated")
    code, corpus, err = prepare(address)
    assert (code, corpus) == (2, None)
    assert message in err


def test_a_missing_shard_is_an_incomplete_dataset(prepare, hub):
    del hub.datasets["somebody/babylm-nld"]["data/train-00001-of-00002.parquet"]
    code, _, err = prepare("hf://somebody/babylm-nld")
    assert code == 2
    assert "incomplete: 1 of 2 files are missing, such as data/train-00001-of-00002.parquet" in err
