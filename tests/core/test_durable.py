"""Finished names are only given to what is on disk already, so that a power failure cannot leave half a file behind."""

import os
from pathlib import Path

import pytest
import torch

from ltg_mdlm.core.files import TEMPORARY, publish_folder, remove_leftovers, temporary_name, write_text
from ltg_mdlm.storage.checkpoint import Checkpoints, TrainingState


@pytest.fixture
def order(monkeypatch):
    """The inodes that were forced to disk so far, and the finished names that were given out."""
    on_disk, named = set(), []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def record_fsync(descriptor):
        on_disk.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(move):
        def record_move(source, target):
            if Path(source).name.startswith(TEMPORARY):
                contents = [Path(source), *Path(source).rglob("*")]
                late = [path for path in contents if path.stat().st_ino not in on_disk]
                assert not late, f"{target} is named before {late} is on disk"
                named.append(Path(target).name)
            move(source, target)

        return record_move

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", checked(rename))
    monkeypatch.setattr(os, "replace", checked(replace))
    return on_disk, named


def test_nothing_gets_its_name_before_it_is_on_disk(order, tmp_path):
    on_disk, named = order
    tensors = {"a": torch.ones(3)}
    state = TrainingState(step=3, words_seen=1_000_000, model=tensors, ema=tensors, optimizer=tensors)
    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    checkpoints.save(state)
    checkpoints.finish()
    assert named == ["state.json", "state.json", "chck_1M", "step_0000003", "latest"]
    assert tmp_path.stat().st_ino in on_disk


def test_a_small_file_is_replaced_as_a_whole(order, tmp_path):
    on_disk, _ = order
    write_text(tmp_path / "status.json", "one")
    write_text(tmp_path / "status.json", "two, å")
    assert (tmp_path / "status.json").read_text(encoding="utf-8") == "two, å"
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]
    assert tmp_path.stat().st_ino in on_disk


def test_a_folder_takes_the_place_of_an_older_one(tmp_path):
    for content in ("old", "new"):
        aside = temporary_name(tmp_path / "final")
        aside.mkdir()
        (aside / content).write_text(content)
        publish_folder(aside, tmp_path / "final")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["final", "final/new"]


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / f"{TEMPORARY}1-folder").mkdir()
    (tmp_path / f"{TEMPORARY}1-folder" / "file").write_text("")
    (tmp_path / f"{TEMPORARY}1-file").write_text("")
    (tmp_path / "finished").write_text("")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["finished"]
