"""An old and a new `transformers` and programs that use it, which are no part of the test environment.

They are installed once into the user's cache; delete `ltg_mdlm_tests` there to get the newest again.
"""

import hashlib
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


_PROGRAMS = """
    absl-py==2.5.1 accelerate==1.15.0 aiohttp==3.14.5 certifi charset-normalizer cloudpickle==3.1.3 colorama==0.4.6
    datasets==5.2.0 dill==0.4.1 evaluate==0.4.6 flatbuffers==25.12.19 joblib==1.6.0 lm-eval==0.4.13 lxml==6.1.3
    minicons==0.3.39 ml-dtypes==0.6.0 more-itertools==11.2.1 multiprocess==0.70.19 narwhals==2.29.0 nltk==3.10.4
    onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0 onnxscript==0.7.2 pandas==3.1.1 peft==0.21.2 portalocker==4.4.2
    protobuf==7.36.2 psutil==7.2.2 pyarrow==26.0.1 pytablewriter==1.2.1 python-dateutil==4.0.0 pytz==2026.6
    requests==2.34.2 rouge-score==0.1.2 sacrebleu==2.6.0 scikit-learn==1.9.1 sentence-transformers==6.2.0 six==1.17.0
    sqlitedict==2.1.0 tabulate==0.10.0 threadpoolctl==3.8.0 tzdata urllib3==2.8.0 wonderwords==3.0.1 word2number==1.1
    xxhash==4.1.0
"""
CLIENTS = ("--no-deps", *_PROGRAMS.split())
"""The programs of test_clients.py, and what they need besides `transformers` and this environment."""


def installed(*requirements: str) -> Path:
    """A folder with what pip installs for these arguments; skips the test where it cannot be had."""
    requirement = " ".join(requirements)
    name = "".join(c if c.isalnum() or c == "." else "-" for c in requirement)
    if len(name) > 100:
        name = f"{len(requirements)}-packages-{hashlib.sha256(requirement.encode()).hexdigest()[:12]}"

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
            pytest.skip(f"pip cannot install {requirement[:100]}: {done.stderr.strip()[-300:]}")

    return made_once(default_cache_dir().with_name("ltg_mdlm_tests") / name, install)
