"""Checkpoints: restored bit-exactly, verified, kept and deleted as documented, with clear errors."""

import errno
import itertools
import json
import os
import random
import shutil
import stat
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.storage import checkpoint
from ltg_mdlm.storage.checkpoint import (
    Checkpoints,
    TrainingState,
    damage,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    milestones_crossed,
    newest_checkpoint,
    parse_state,
    read_about,
)
from ltg_mdlm.training.ema import EMA

MILLION = 1_000_000


def state_at(step, words_seen=0):
    """A state with the number of the step in its tensors."""
    return TrainingState(
        step=step,
        words_seen=words_seen,
        model={"weight": torch.full((3, 4), float(step)), "bias": torch.arange(3.0)},
        ema={"weight": torch.full((3, 4), step / 2), "count": torch.tensor(step)},
        optimizer={"first_moment/weight": torch.randn(3, 4), "count": torch.tensor(float(step))},
        components={"masking/counts": torch.arange(5)},
    )


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", every=10, keep=2, about={"seed": 7, "versions": {"torch": "x"}})


def save(checkpoints, state):
    """Save, and wait until it is on disk."""
    checkpoints.save(state)
    checkpoints.finish()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_state_is_restored_bit_exactly(checkpoints):
    base = torch.randn(6, 5)
    unusual = {
        "transposed": base.t(),
        "part": base[1:3],
        "tied": base,
        "not finite": torch.tensor([float("nan"), float("inf"), -0.0]),
        "scalar": torch.tensor(2**40),
        "bf16": base.bfloat16(),
        "bool": base > 0,
        "empty": torch.empty(0, 3),
        "gradient": base.clone().requires_grad_(),
    }
    save(checkpoints, TrainingState(step=20, words_seen=5, model=unusual, optimizer=unusual))
    state = checkpoints.load(newest_checkpoint(checkpoints.folder))
    assert (state.step, state.words_seen, state.ema, state.components) == (20, 5, {}, {})
    for part in (state.model, state.optimizer):
        assert part.keys() == unusual.keys()
        for name, tensor in unusual.items():
            assert part[name].dtype == tensor.dtype
            torch.testing.assert_close(part[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)


def test_a_checkpoint_is_what_the_documentation_says(checkpoints):
    save(checkpoints, state_at(100))
    folder = checkpoints.folder / "step_0000100"
    parts = [f"{part}.safetensors" for part in ("components", "ema", "model", "optimizer")]
    assert names_in(checkpoints.folder) == ["latest", "step_0000100"]
    assert names_in(folder) == [*parts, "state.json"]
    assert (checkpoints.folder / "latest").read_text().strip() == "step_0000100"
    about = json.loads((folder / "state.json").read_text())
    assert {key: about[key] for key in ("step", "words_seen", "seed", "versions")} == {
        "step": 100,
        "words_seen": 0,
        "seed": 7,
        "versions": {"torch": "x"},
    }
    assert sorted(about["files"]) == parts
    assert torch.equal(load_file(folder / "model.safetensors")["weight"], torch.full((3, 4), 100.0))


def test_all_files_have_the_same_permissions(checkpoints):
    save(checkpoints, state_at(10))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (checkpoints.folder / "step_0000010").iterdir()}
    assert len(modes) == 1


def test_the_newest_checkpoints_are_kept(checkpoints):
    for step in (10, 20, 30, 40):
        save(checkpoints, state_at(step))
    assert names_in(checkpoints.folder) == ["latest", "step_0000030", "step_0000040"]
    assert newest_checkpoint(checkpoints.folder).name == "step_0000040"


def test_resuming_an_earlier_checkpoint_discards_the_later_ones(checkpoints):
    """A run resumed from step 10 that saves at 15 must not find the old step 20 again."""
    for step in (10, 20):
        save(checkpoints, state_at(step))
    state = checkpoints.load(checkpoints.folder / "step_0000010")
    save(checkpoints, state_at(state.step + 5))
    assert names_in(checkpoints.folder) == ["latest", "step_0000010", "step_0000015"]
    assert newest_checkpoint(checkpoints.folder).name == "step_0000015"


def test_saving_a_step_again_replaces_it(checkpoints):
    save(checkpoints, state_at(10, words_seen=1))
    save(checkpoints, state_at(10, words_seen=2))
    assert checkpoints.load(newest_checkpoint(checkpoints.folder)).words_seen == 2
    assert names_in(checkpoints.folder) == ["latest", "step_0000010"]


def test_milestones_are_never_deleted(checkpoints):
    assert not checkpoints.due(1, MILLION - 1)
    assert checkpoints.due(1, MILLION)
    assert checkpoints.due(10, 0)
    save(checkpoints, state_at(11, words_seen=2 * MILLION + 5))
    for step in (20, 30, 40):
        save(checkpoints, state_at(step, words_seen=2 * MILLION + step))
    assert names_in(checkpoints.folder) == ["chck_1M", "chck_2M", "latest", "step_0000030", "step_0000040"]
    assert names_in(checkpoints.folder / "chck_2M") == ["ema.safetensors", "model.safetensors", "state.json"]
    for name in ("chck_1M", "chck_2M"):
        assert damage(checkpoints.folder / name) is None
        assert read_about(checkpoints.folder / name)["step"] == 11
        assert torch.equal(load_weights(checkpoints.folder / name)["weight"], torch.full((3, 4), 5.5))


def test_a_milestone_shares_the_disk_blocks_of_its_step(checkpoints):
    save(checkpoints, state_at(11, words_seen=MILLION))
    step, milestone = (checkpoints.folder / name / "model.safetensors" for name in ("step_0000011", "chck_1M"))
    assert step.samefile(milestone)


def test_a_milestone_is_copied_where_links_are_not_possible(checkpoints, monkeypatch):
    def refuse(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    save(checkpoints, state_at(11, words_seen=MILLION))
    assert damage(checkpoints.folder / "chck_1M") is None


def test_milestones_before_the_resumed_step_are_not_written_again(checkpoints):
    save(checkpoints, state_at(11, words_seen=MILLION))
    resumed = Checkpoints(checkpoints.folder, every=10, keep=2)
    resumed.load(newest_checkpoint(resumed.folder))
    assert not resumed.due(12, MILLION + 1)
    assert resumed.due(12, 2 * MILLION)


def test_milestones_can_be_switched_off(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=10, keep=2, by_words=False)
    assert not checkpoints.due(11, MILLION)
    save(checkpoints, state_at(11, words_seen=MILLION))
    assert names_in(tmp_path) == ["latest", "step_0000011"]


def test_milestones_are_the_word_counts_of_the_challenge():
    """https://babylm.github.io: every 1M words to 10M, every 10M to 100M, every 100M to 1000M."""
    names = milestones_crossed(0, 10**10)
    assert names[:11] == [f"chck_{n}M" for n in (*range(1, 11), 20)]
    assert names[17:21] == ["chck_90M", "chck_100M", "chck_200M", "chck_300M"]
    assert names[-1] == "chck_1000M"
    assert len(names) == 28
    assert milestones_crossed(0, MILLION - 1) == []
    assert milestones_crossed(MILLION - 1, MILLION) == ["chck_1M"]
    assert milestones_crossed(MILLION, MILLION + 1) == []


@given(st.lists(st.integers(0, 2 * 10**9), min_size=1, max_size=20))
def test_every_milestone_is_crossed_exactly_once(words):
    stops = [0, *sorted(words)]
    crossed = [name for before, after in itertools.pairwise(stops) for name in milestones_crossed(before, after)]
    assert crossed == milestones_crossed(0, stops[-1])


def test_other_ranks_write_nothing_and_count_words_alike(tmp_path):
    bystander = Checkpoints(tmp_path / "checkpoints", every=10, keep=2, writes=False)
    assert bystander.due(3, MILLION)
    save(bystander, state_at(3, words_seen=MILLION))
    assert not bystander.due(4, MILLION + 1)
    assert not (tmp_path / "checkpoints").exists()


def flip_a_bit(folder):
    file = folder / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut_a_file(folder):
    file = folder / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def lose_a_file(folder):
    (folder / "components.safetensors").unlink()


def lose_the_state(folder):
    (folder / "state.json").unlink()


def cut_the_state(folder):
    (folder / "state.json").write_text('{"format_version": 1, "st')


def empty_the_state(folder):
    (folder / "state.json").write_text("")


def nonsense_for_the_state(folder):
    (folder / "state.json").write_text("[1]")


def come_from_the_future(folder):
    (folder / "state.json").write_text('{"format_version": 99}')


def lose_the_folder(folder):
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (flip_a_bit, r"optimizer\.safetensors is not what was written"),
        (cut_a_file, r"ema\.safetensors has \d+ bytes instead of \d+"),
        (lose_a_file, r"components\.safetensors is missing"),
        (lose_the_state, r"state\.json cannot be read"),
        (cut_the_state, r"state\.json cannot be read"),
        (empty_the_state, r"state\.json cannot be read"),
        (nonsense_for_the_state, r"state\.json cannot be read"),
        (come_from_the_future, "format version 99, which this program does not know"),
        (lose_the_folder, r"state\.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(checkpoints, spoil, message):
    for step in (10, 20):
        save(checkpoints, state_at(step))
    spoil(checkpoints.folder / "step_0000020")
    with pytest.warns(UserWarning, match=message):
        found = newest_checkpoint(checkpoints.folder)
    assert checkpoints.load(found).step == 10
    with pytest.raises(UserError, match=message):
        checkpoints.load(checkpoints.folder / "step_0000020")


def test_without_latest_the_newest_step_is_taken(checkpoints):
    for step in (10, 20):
        save(checkpoints, state_at(step))
    (checkpoints.folder / "latest").unlink()
    assert newest_checkpoint(checkpoints.folder).name == "step_0000020"


def test_no_checkpoint_is_no_error(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_milestone_cannot_be_resumed_and_the_error_names_the_alternative(checkpoints):
    save(checkpoints, state_at(11, words_seen=MILLION))
    with pytest.raises(UserError, match=r"holds weights only .*run\.init_from"):
        load_checkpoint(checkpoints.folder / "chck_1M")


def test_a_checkpoint_is_found_by_its_folder_or_that_of_its_run(checkpoints, tmp_path):
    save(checkpoints, state_at(10, words_seen=MILLION))
    newest = checkpoints.folder / "step_0000010"
    assert find_checkpoint(tmp_path) == newest
    assert find_checkpoint(newest) == newest
    assert find_checkpoint(checkpoints.folder / "chck_1M") == checkpoints.folder / "chck_1M"
    with pytest.raises(UserError, match=r"neither a checkpoint .* nor a run"):
        find_checkpoint(tmp_path / "nowhere")


def test_weights_are_averaged_or_those_of_the_last_step(checkpoints):
    model = torch.nn.BatchNorm1d(2)  # has buffers, which are not averaged
    ema = EMA(model, decay=0.5, ramp=False)
    with torch.no_grad():
        model.weight.fill_(3.0)
    ema.update()
    save(checkpoints, TrainingState(step=10, words_seen=0, model=model.state_dict(), ema=ema.state_dict()))
    for averaged, expected in ((True, 2.0), (False, 3.0)):
        model.load_state_dict(load_weights(newest_checkpoint(checkpoints.folder), averaged=averaged))
        assert model.weight.tolist() == [expected] * 2


def test_unreadable_weights_are_a_user_error(checkpoints):
    save(checkpoints, state_at(10))
    (checkpoints.folder / "step_0000010" / "ema.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"ema\.safetensors cannot be read"):
        load_weights(checkpoints.folder / "step_0000010")


def fill_the_disk(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(2**40, 2**40 - 1000, 1000))


def test_a_full_disk_is_noticed_before_anything_is_written(checkpoints, monkeypatch):
    save(checkpoints, state_at(10))
    fill_the_disk(monkeypatch)
    message = r"step_0000020: it needs 16 MiB of disk, 0 MiB are free\n.*make room"
    with pytest.warns(UserWarning, match="trying once more"), pytest.raises(UserError, match=message):
        save(checkpoints, state_at(20))
    assert names_in(checkpoints.folder) == ["latest", "step_0000010"]
    assert newest_checkpoint(checkpoints.folder).name == "step_0000010"


def fail_once(checkpoints, monkeypatch, state):
    """Save while the disk is full."""
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        checkpoints.save(state)
        checkpoints._thread.submit(lambda: None).result()


def test_a_failed_save_is_reported_and_repeated(checkpoints, monkeypatch):
    """Including the milestone, which the failed save did not write."""
    fail_once(checkpoints, monkeypatch, state_at(20, words_seen=MILLION))
    assert checkpoints.failed
    with pytest.warns(UserWarning, match=r"step_0000020: it needs .*\n.*\n  trying once more, at step 21"):
        save(checkpoints, state_at(21, words_seen=MILLION))
    assert names_in(checkpoints.folder) == ["chck_1M", "latest", "step_0000021"]
    assert not checkpoints.failed
    assert not checkpoints.due(22, MILLION)


def test_the_last_save_is_repeated_too(checkpoints, monkeypatch):
    """As it was when it was saved, with its milestone."""
    state = state_at(20, words_seen=MILLION)
    fail_once(checkpoints, monkeypatch, state)
    state.model["weight"].zero_()
    with pytest.warns(UserWarning, match=r"step_0000020: it needs .*\n.*\n  trying once more$"):
        checkpoints.finish()
    assert names_in(checkpoints.folder) == ["chck_1M", "latest", "step_0000020"]
    assert checkpoints.load(newest_checkpoint(checkpoints.folder)).model["weight"].unique().tolist() == [20.0]


def test_two_failed_saves_in_a_row_end_the_run(checkpoints, monkeypatch):
    save(checkpoints, state_at(10))
    fail_once(checkpoints, monkeypatch, state_at(20))
    fill_the_disk(monkeypatch)
    with pytest.warns(UserWarning, match="trying once more"):
        checkpoints.save(state_at(21))
    with pytest.raises(UserError, match=r"step_0000021: it needs"):
        checkpoints.save(state_at(22))
    assert checkpoints.load(newest_checkpoint(checkpoints.folder)).step == 10


def test_training_continues_while_a_copy_is_written(checkpoints, monkeypatch):
    """The file has the state at the time of the save, and a second save waits for the first."""
    may_write = threading.Event()
    write = checkpoint.write_tensors
    monkeypatch.setattr(checkpoint, "write_tensors", lambda *args: may_write.wait(30) and write(*args))
    weight = torch.zeros(4)
    checkpoints.save(TrainingState(step=10, words_seen=0, model={"weight": weight}))
    weight += 1
    assert not names_in(checkpoints.folder.parent) or newest_checkpoint(checkpoints.folder) is None
    second = threading.Thread(
        target=checkpoints.save, args=[TrainingState(step=20, words_seen=0, model={"weight": weight})]
    )
    second.start()
    assert second.is_alive()
    may_write.set()
    second.join()
    checkpoints.finish()
    for step, value in ((10, 0.0), (20, 1.0)):
        state = checkpoints.load(checkpoints.folder / f"step_{step:07d}")
        assert state.model["weight"].tolist() == [value] * 4


def test_memory_is_allocated_once(checkpoints):
    checkpoints.reserve(state_at(0))
    taken = [t.data_ptr() for t in checkpoints._buffers["model"]._buffers.values()]
    save(checkpoints, state_at(10))
    assert [t.data_ptr() for t in checkpoints._buffers["model"]._buffers.values()] == taken


def test_a_disk_without_room_for_a_checkpoint_is_noticed_before_training(checkpoints, monkeypatch):
    checkpoints.reserve(state_at(0))
    assert names_in(checkpoints.folder) == []
    with monkeypatch.context() as patch:
        fill_the_disk(patch)
        with pytest.raises(UserError, match=r"cannot be written to .*: it needs 16 MiB"):
            checkpoints.reserve(state_at(0))
    monkeypatch.setattr(checkpoint, "sync", refuse_to_sync)
    with pytest.raises(UserError, match=r"cannot be written to .*: the disk quota is used up"):
        checkpoints.reserve(state_at(0))


def refuse_to_sync(path):
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))


def test_the_journal_is_on_disk_before_the_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("{}")
    order = []
    monkeypatch.setattr(checkpoint, "sync", lambda path: order.append(path.name))
    monkeypatch.setattr(checkpoint, "write_tensors", lambda path, _: order.append(path.name) or {})
    journal = tmp_path / "metrics.jsonl"
    save(Checkpoints(tmp_path / "c", every=1, keep=1, journal=journal, saved=order.append), state_at(3))
    assert order[0] == "metrics.jsonl"
    assert order[-1] == 3


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again(checkpoints):
    for step in (10, 20):
        save(checkpoints, state_at(step))
        flip_a_bit(checkpoints.folder / f"step_{step:07d}")
    refusal = r"has no readable checkpoint; delete it to start again(\n  the checkpoint .*SHA-256.*){2}"
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(UserError, match=refusal):
        newest_checkpoint(checkpoints.folder)


@pytest.fixture
def small(checkpoints):
    """A checkpoint of a few hundred bytes per file, with what real runs say about themselves."""
    about = {
        "seed": 7,
        "world_size": 2,
        "versions": {"ltg_mdlm": "3.0", "uniform_mdlm": "ltg_mdlm 3.0"},
        "provenance": {"masking": {"plugin": "uniform_mdlm", "distribution": "ltg_mdlm", "version": "3.0"}},
        "config": {"optimizer": {"lr": 1e-3, "betas": [0.9, 0.98]}, "plugins": {"uniform_mdlm": {}}, "name": "å"},
        "modes": ["masked"],
        "predicts": "same",
    }
    save(Checkpoints(checkpoints.folder, every=10, keep=2, about=about), state_at(20, words_seen=1234))
    return checkpoints.folder / "step_0000020"


def flipped(content, position, bit):
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    return bytes(damaged)


def test_every_byte_of_a_checkpoint_is_covered_by_a_hash(small):
    """A flipped bit is noticed.  Only in white space of state.json may it pass, and then the content is the same.

    `benchmarks/faults.py flips` flips every bit of every file.
    """
    about, chance, passed = read_about(small), random.Random(0), 0
    state = (small / "state.json").read_bytes()
    for position in range(len(state)):
        try:
            assert parse_state(flipped(state, position, chance.randrange(8)), small) == about, position
            passed += 1
        except UserError:
            pass
    assert passed < sum(character in b" \n" for character in state)
    for file in small.glob("*.safetensors"):
        content = file.read_bytes()
        for position in (*range(0, len(content), 20), len(content) - 1):
            file.write_bytes(flipped(content, position, chance.randrange(8)))
            assert damage(small) == f"{file.name} is not what was written (its SHA-256 differs)"
        file.write_bytes(content)
    assert damage(small) is None


def rewritten(small, **changes):
    """Write another state.json without a digest, as old versions did."""
    content = json.loads((small / "state.json").read_text()) | changes
    content = {key: value for key, value in content.items() if key not in ("digest", "digest_of") and value != "gone"}
    (small / "state.json").write_text(json.dumps(content))


def test_a_checkpoint_of_an_old_version_has_no_digest_and_is_opened(small):
    about = read_about(small)
    rewritten(small)
    assert (read_about(small), damage(small)) == (about, None)
    assert load_checkpoint(small).words_seen == 1234
    rewritten(
        small, versions="gone", provenance="gone", config="gone", modes="gone", predicts="gone", world_size="gone"
    )
    assert damage(small) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "twenty"},
        {"step": True},
        {"step": -20},
        {"step": 1e400},
        {"words_seen": [1]},
        {"words_seen": "gone"},
        {"format_version": None},
        {"format_version": "gone"},
        {"files": ["model.safetensors"]},
        {"files": {"model.safetensors": {"cytes": 1, "sha256": "0" * 64}}},
        {"files": {"../../metrics.safetensors": {"bytes": 1, "sha256": "0" * 64}}},
        {"config": [1]},
        {"config": None},
        {"versions": {"torch": 2}},
        {"versions": []},
        {"provenance": {"masking": {"plugin": "uniform_mdlm"}}},
        {"world_size": "2"},
        {"modes": "masked"},
        {"predicts": "everything"},
        {"step": 30},
    ],
)
def test_without_a_digest_wrong_types_and_missing_keys_are_noticed(small, changes):
    rewritten(small, **changes)
    assert "state.json" in damage(small)
    with pytest.raises(UserError, match=r"the checkpoint .*step_0000020 is damaged: .*state\.json"):
        load_checkpoint(small)
    with pytest.raises(UserError, match="is damaged"):
        find_checkpoint(small)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), lambda s: st.lists(s, max_size=3)))
def test_any_json_in_place_of_a_state_is_an_error_and_no_exception(content):
    for state in (content, {"format_version": content, "step": content, "files": content}):
        with pytest.raises(UserError, match=r"state\.json cannot be read"):
            parse_state(json.dumps(state).encode(), Path("state.json"))


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"\xff\xfe{}", b"\0" * 500, b'{"format_version": ' + b"9" * 5000 + b"}"]
)
def test_bytes_that_are_no_json_are_an_error_and_no_exception(small, content):
    (small / "state.json").write_bytes(content)
    assert "state.json" in damage(small)


@pytest.mark.parametrize(
    "content", [b"\xf3tep_0000020\n", b"", b"../../other", b"step_\xc2\xb2", b"chck_1M", b"\0", None]
)
def test_an_odd_latest_is_reported_and_the_newest_checkpoint_is_used(small, content):
    latest = small.parent / "latest"
    latest.unlink()
    if content is None:
        latest.mkdir()
    else:
        latest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"latest is ignored: it (does not name|cannot be read)") as said:
        assert newest_checkpoint(small.parent) == small
    assert len(said) == 1
    shutil.rmtree(small)
    with pytest.warns(UserWarning, match="ignored"), pytest.raises(UserError, match="no readable checkpoint"):
        newest_checkpoint(small.parent)


def test_an_older_checkpoint_that_latest_names_is_used_and_reported(checkpoints):
    for step in (10, 20):
        save(checkpoints, state_at(step))
    (checkpoints.folder / "latest").write_text("step_0000010\n")
    with pytest.warns(UserWarning, match="has step_0000020, but `latest` names the older step_0000010"):
        assert newest_checkpoint(checkpoints.folder).name == "step_0000010"


@pytest.mark.parametrize(("failing", "newest"), [(1, "step_0000010"), (2, "step_0000015")])
def test_a_complete_checkpoint_is_used_even_if_latest_could_not_be_updated_afterwards(
    failing, newest, checkpoints, monkeypatch
):
    """Also after going back to step 10 with step 20 still in place.  The save is not complete if `next` fails."""
    for step in (10, 20):
        save(checkpoints, state_at(step))
    checkpoint.continue_from(checkpoints.folder / "step_0000010", checkpoints.folder)
    write, written = checkpoint.write_text, []

    def write_text(file, text):
        written.append(text)
        if len(written) >= failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        write(file, text)

    monkeypatch.setattr(checkpoint, "write_text", write_text)
    checkpoints.save(state_at(15))
    with pytest.warns(UserWarning, match="trying once more"), pytest.raises(UserError, match="No space left"):
        checkpoints.finish()
    with pytest.warns(UserWarning, match=f"has step_0000020, but `latest` names the older {newest}"):
        assert newest_checkpoint(checkpoints.folder).name == newest


def test_odd_names_beside_checkpoints_are_ignored_and_kept(checkpoints):
    checkpoints.folder.mkdir()
    odd = ["step_²", "step_", "step_-000001", "step_4", "step_0000099.bak", "chck_²M", "step_0000000000000"]
    for name in odd:
        (checkpoints.folder / name).mkdir()
    (checkpoints.folder / "step_0000098").write_text("a file")
    for step in (10, 20, 30):
        save(checkpoints, state_at(step))
    assert newest_checkpoint(checkpoints.folder).name == "step_0000030"
    assert names_in(checkpoints.folder) == sorted([*odd, "latest", "step_0000020", "step_0000030", "step_0000098"])


def test_the_target_of_a_linked_checkpoint_is_kept_when_the_checkpoint_is_outdated(checkpoints, tmp_path):
    save(checkpoints, state_at(10))
    moved = (checkpoints.folder / "step_0000010").rename(tmp_path / "elsewhere")
    (checkpoints.folder / "step_0000010").symlink_to(moved)
    for step in (20, 30):
        save(checkpoints, state_at(step))
    assert names_in(checkpoints.folder) == ["latest", "step_0000020", "step_0000030"]
    assert (moved / "state.json").is_file()


def test_a_folder_of_checkpoints_that_cannot_be_read_is_an_error_and_no_new_beginning(checkpoints, tmp_path):
    checkpoints.folder.write_text("a file")
    with pytest.raises(UserError, match="checkpoints cannot be read: not a folder"):
        newest_checkpoint(checkpoints.folder)


def test_nothing_is_written_once_the_run_folder_is_lost(tmp_path):
    def refuse():
        raise UserError("the run folder was renamed")

    with pytest.raises(UserError, match="renamed"):
        Checkpoints(tmp_path / "checkpoints", every=1, keep=1, require_folder=refuse).save(state_at(1))
    assert names_in(tmp_path) == []
