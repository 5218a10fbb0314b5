"""An old and a new `transformers`, which is no part of the test environment.

They are installed once into the user's cache; delete `ltg_mdlm_tests` there to get the newest again.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.shared import made_once

from ltg_mdlm.data.synthetic.builtin import default_cache_dir

VERSIONS = {"old": "transformers==4.51.3", "new": "transformers>=5,<6"}
TRAINER = ("--no-deps", "accelerate", "psutil")
"""What the `Trainer` needs besides; without its dependencies, because torch is one of them."""


def installed(*requirements: str) -> Path:
    """A folder with what pip installs for these arguments; skips the test where it cannot be had."""
    requirement = " ".join(requirements)
    name = "".join(c if c.isalnum() or c == "." else "-" for c in requirement)

    def install(aside: Path) -> None:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
            "--no-compile",
            "--retries",
            "1",
        ]
        done = subprocess.run([*pip, "--target", aside, *requirements], capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(aside, ignore_errors=True)
            pytest.skip(f"pip cannot install {requirement}: {done.stderr.strip()[-300:]}")

    return made_once(default_cache_dir().with_name("ltg_mdlm_tests") / name, install)
