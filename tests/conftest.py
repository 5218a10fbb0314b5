"""For all tests: one thread each, since they share the cores, and no deadline that a busy machine would miss.

Every session sees the same plugins, those of the distributions in this repository included.
"""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from support.distributions import find_distributions

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.fsync = lambda descriptor: None  # no test loses power; those of fsync replace it
settings.register_profile("shared_machine", deadline=None)
settings.load_profile("shared_machine")
find_distributions()


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs unless `-m gpu` is given, and run Triton's kernels in its interpreter where no GPU is used.

    Other tests compare bits, and start more processes than there are GPUs.
    """
    uses_gpu = config.option.markexpr == "gpu"
    if not uses_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not (uses_gpu and any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg"))):
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slurm's jobs come first: they mostly wait, which other tests can use, but not if they are the last ones."""
    items.sort(key=lambda item: "slurm" not in item.path.parts)


def pytest_collection_finish() -> None:
    """Imports torch here, since the process that only hands tests out to others would do it before they begin."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""
    from ltg_mdlm.cli.app import main

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ltg-mdlm", *arguments])
        monkeypatch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture(scope="session")
def base_vocabulary_corpus(tmp_path_factory) -> Path:
    """A small corpus whose tokenizer has the published 16384 types."""
    from ltg_mdlm.data.prepare import prepare_corpus
    from ltg_mdlm.data.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("base")
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = folder / "words.txt"
    # Every three-letter word, often enough to become a token: more than fill the vocabulary.
    words = [f"{a}{b}{c}" for a in letters for b in letters for c in letters]
    text.write_text("\n\n".join(" ".join(words[i::40]) for i in range(40)) * 16 + "\n")
    corpus = prepare_corpus([text], folder / "corpus", vocab_size=16384, workers=1, progress=False)
    assert Tokenizer.read(corpus.tokenizer_path).vocab_size == 16384
    return corpus.path
