"""Upload of exported folders to a hub in memory."""

import inspect
import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from support.hub import ConnectError, FakeHub, HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.interchange.push import open_hub, plan_uploads, require_repo_name

REPO = "my-lab/freq-mdlm"
CODE = {
    "configuration_ltg_mdlm.py": "from .transformer import ModelConfig\n",
    "modeling_ltg_mdlm.py": "from .configuration_ltg_mdlm import C\nfrom .time_embedding import EMBEDDING\n",
    "time_embedding.py": "from .transformer import TimeEmbedding as EMBEDDING\n",
    "transformer.py": "import math\n",
}


def export(folder, value=0.0):
    """A folder with the files of an export."""
    folder.mkdir(parents=True)
    classes = {"AutoConfig": "configuration_ltg_mdlm.C", "AutoModel": "modeling_ltg_mdlm.M"}
    (folder / "config.json").write_text(json.dumps({"auto_map": classes}))
    save_file({"weight": torch.full((4,), value)}, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "README.md"):
        (folder / name).write_text(f"{name} of {folder.name}")
    for name, text in CODE.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def with_revisions(tmp_path):
    """An export of three checkpoints."""
    for i, name in enumerate(("main", "chck_10M", "chck_2M")):
        export(tmp_path / "exported" / name, value=i)
    (tmp_path / "exported" / "revisions.json").write_text("{}")
    return tmp_path / "exported"


@pytest.fixture
def hub(monkeypatch):
    """Replaces the Hub for the command."""
    fake = FakeHub()
    monkeypatch.setattr("ltg_mdlm.interchange.push.open_hub", lambda: fake)
    return fake


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {".gitattributes": b""}


def test_a_folder_becomes_a_commit_on_main(tmp_path, run, hub):
    folder = export(tmp_path / "model")
    code, out, _ = run("push", str(folder), "--repo", REPO)
    assert code == 0
    assert out.endswith(f"https://huggingface.co/{REPO}\n")
    assert hub.branches[REPO]["main"][-1] == content(folder)
    assert list(hub.branches[REPO]) == ["main"]
    assert hub.private == {REPO: False}


def test_every_revision_becomes_a_branch_main_first(with_revisions, run, hub):
    code, out, _ = run("push", str(with_revisions), "--repo", REPO, "--revisions")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["main", "chck_2M", "chck_10M"]
    assert hub.messages == [f"Upload {name} with ltg-mdlm" for name in ("main", "chck_2M", "chck_10M")]
    heads = {branch: commits[-1] for branch, commits in hub.branches[REPO].items()}
    assert heads == {name: content(with_revisions / name) for name in ("main", "chck_2M", "chck_10M")}


def test_earlier_files_stay_in_the_history(tmp_path, run, hub):
    hub.create_repo(REPO, private=False, exist_ok=True)
    hub.branches[REPO]["main"].append({"old.bin": b"1", "README.md": b"by hand"})
    before = list(hub.branches[REPO]["main"])
    folder = export(tmp_path / "model")
    run("push", str(folder), "--repo", REPO)
    assert hub.branches[REPO]["main"][:-1] == before
    assert "old.bin" not in hub.branches[REPO]["main"][-1]


def test_hidden_files_are_not_uploaded(tmp_path, run, hub):
    folder = export(tmp_path / "model")
    (folder / ".env").write_text("secret")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("x")
    _, listing, _ = run("push", str(folder), "--repo", REPO, "--dry-run")
    run("push", str(folder), "--repo", REPO)
    uploaded = set(hub.branches[REPO]["main"][-1]) - {".gitattributes"}
    assert {line.strip() for line in listing.splitlines()[2:]} == uploaded
    assert not any("env" in name or "cache" in name for name in uploaded)


def test_a_dry_run_lists_and_uploads_nothing(with_revisions, run, hub):
    code, out, _ = run("push", str(with_revisions), "--repo", REPO, "--revisions", "--dry-run")
    assert code == 0
    assert out.startswith(f"would upload to {REPO}:\nmain ")
    assert out.count("  model.safetensors\n") == 3
    assert hub.branches == {}


def test_private_is_kept_private(tmp_path, run, hub):
    folder = export(tmp_path / "model")
    run("push", str(folder), "--repo", REPO, "--private")
    assert hub.private[REPO]
    assert run("push", str(folder), "--repo", REPO)[0] == 0
    assert hub.private[REPO]


def test_nothing_private_goes_to_a_public_repository(tmp_path, run, hub):
    hub.create_repo(REPO, private=False, exist_ok=True)
    code, _, err = run("push", str(export(tmp_path / "model")), "--repo", REPO, "--private")
    assert code == 2
    assert f"{REPO} exists and is public, so nothing was uploaded" in err
    assert len(hub.branches[REPO]["main"]) == 1


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("whoami", LocalTokenNotFoundError("no token"), "not logged in to the Hugging Face Hub"),
        ("whoami", HfHubHTTPError(401), "not logged in to the Hugging Face Hub"),
        ("whoami", OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE disables access"),
        ("whoami", ConnectError("no route to host"), "cannot be reached: no route to host"),
        ("create_repo", HfHubHTTPError(403), f"has no write access to {REPO}"),
        ("create_branch", HfHubHTTPError(500), "the Hugging Face Hub refused the request: 500 Client Error"),
        ("upload_folder", TimeoutError("timed out"), "cannot be reached: timed out"),
    ],
)
def test_errors_of_the_hub_become_messages(with_revisions, run, hub, method, error, message):
    hub.failures[method] = error
    code, _, err = run("push", str(with_revisions), "--repo", REPO, "--revisions")
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert hub.messages == (["Upload main with ltg-mdlm"] if method == "create_branch" else [])


def test_errors_of_the_program_are_not_converted(tmp_path, monkeypatch, hub):
    from ltg_mdlm.interchange.push import push

    hub.failures["whoami"] = KeyError("name")
    with pytest.raises(KeyError):
        push(hub, plan_uploads(export(tmp_path / "model"), revisions=False), REPO, private=False, done=print)


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer_config.json", "README.md", *CODE])
def test_an_incomplete_folder_is_refused(tmp_path, run, hub, missing):
    folder = export(tmp_path / "model")
    (folder / missing).unlink()
    code, _, err = run("push", str(folder), "--repo", REPO)
    assert code == 2
    assert f"{folder}: not a complete exported folder: missing {missing}\n" in err
    assert hub.branches == {}


def cut_weights(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_weights, r"model\.safetensors cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json cannot be read"),
        (lambda folder: (folder / "transformer.py").write_text("def"), r"transformer\.py cannot be read"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, spoil, message):
    spoil(export(tmp_path / "model"))
    with pytest.raises(UserError, match=message):
        plan_uploads(tmp_path / "model", revisions=False)


def test_nothing_is_uploaded_if_one_revision_is_incomplete(with_revisions, run, hub):
    (with_revisions / "chck_10M" / "tokenizer.json").unlink()
    code, _, err = run("push", str(with_revisions), "--repo", REPO, "--revisions")
    assert code == 2
    assert "chck_10M: not a complete exported folder: missing tokenizer.json" in err
    assert hub.branches == {}


def test_folders_are_not_mistaken_for_each_other(tmp_path, with_revisions):
    with pytest.raises(UserError, match="upload them with --revisions"):
        plan_uploads(with_revisions, revisions=False)
    with pytest.raises(UserError, match="no folder main in it"):
        plan_uploads(export(tmp_path / "model"), revisions=True)
    with pytest.raises(UserError, match="no such folder"):
        plan_uploads(tmp_path / "nowhere", revisions=False)
    with pytest.raises(UserError, match=r"missing config\.json, model\.safetensors"):
        plan_uploads(tmp_path, revisions=False)


@pytest.mark.parametrize(
    "repo",
    ["model", "a/b/c", "/b", "a/", "a b/c", "-a/b", "a/b.", "a/b--c", "a/b..c", "a/b.git", f"a/{'b' * 95}", "ä/b"],
)
def test_names_that_the_hub_does_not_allow_are_refused(repo):
    with pytest.raises(UserError, match=r"must be OWNER/NAME"):
        require_repo_name(repo)


def test_names_that_the_hub_allows_are_not(tmp_path):
    for repo in (REPO, "a/b", "Lab.1/BabyLM_2025-small", "a/b_", f"a/{'b' * 94}"):
        require_repo_name(repo)


def test_a_dot_in_the_name_is_refused_since_transformers_would_load_no_code_from_there():
    with pytest.raises(UserError, match="dot in its name"):
        require_repo_name("lab/BabyLM.2025")


def test_the_hub_in_memory_has_the_signatures_of_the_real_one():
    real = pytest.importorskip("huggingface_hub").HfApi
    for name in ("whoami", "create_repo", "repo_info", "create_branch", "upload_folder"):
        theirs = inspect.signature(getattr(real, name)).parameters
        ours = inspect.signature(getattr(FakeHub, name)).parameters
        assert ours.keys() <= theirs.keys(), name
        needed = {p.name for p in theirs.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
        assert needed <= ours.keys(), name


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r'pip install "ltg-mdlm\[hub\]"'):
        open_hub()
