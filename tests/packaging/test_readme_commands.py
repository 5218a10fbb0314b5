"""The README's commands run as printed, in their order, in an empty folder; what takes long is shortened."""

import re
import shlex
import subprocess
import zipfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hatchling.build import build_wheel
from support.installed import plugins_installed
from support.runs import SCORED, TINY, status

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
OUTSIDE_TEST_COMMAND = re.sub(r"<!-- test-command -->.*?<!-- /test-command -->", "", README, flags=re.DOTALL)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```\n", OUTSIDE_TEST_COMMAND, re.DOTALL | re.MULTILINE)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines()]
TINY_RUN = [part for text in (*TINY, *SCORED) for part in ("--set", text)]
SHORT = {
    ("train",): TINY_RUN,
    ("check",): TINY_RUN,
    ("report",): ["--samples", "0", "--recipes", "0"],
    ("plugins", "check"): ["--only", "the_mask_rate_is_kept_if_keeps_rate_says_so"],
}
"""By command, the options that shorten it."""


def install_distribution(source: Path, site: Path) -> None:
    """What `pip install` does for a distribution without new dependencies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(source)
        wheel = build_wheel(str(site))
    zipfile.ZipFile(site / wheel).extractall(site)


def test_commands_run_as_printed_in_their_order(run, tmp_path, monkeypatch):
    home, work, site = (tmp_path / name for name in ("home", "work", "site"))
    for folder in (home, work, site):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(work)
    with ExitStack() as stack:
        for line in COMMANDS:
            words = shlex.split(line.rpartition("&& ")[2].replace("python -m ltg_mdlm.train", "ltg-mdlm train"))
            if words[:2] == ["pip", "install"]:
                if words[-1].startswith("./"):
                    install_distribution(work / words[-1], site)
                    stack.enter_context(plugins_installed(site))
            elif words[0] == "ltg-mdlm":
                code, out, err = run(*words[1:], *SHORT.get((words[1],), []), *SHORT.get(tuple(words[1:3]), []))
                assert code == 0, f"{line}\n{out}{err}"
            else:
                subprocess.run(["bash", "-c", line], check=True)
    assert {path.name: status(path)["status"] for path in (work / "runs").iterdir()} == {
        "laptop-freq_mdlm-s0": "finished",
        "laptop-my_masking-s0": "finished",
        "mine": "finished",
        "baseline": "finished",
    }
    assert (work / "report.html").exists()
    assert (work / "hub/mine/model.safetensors").exists()
