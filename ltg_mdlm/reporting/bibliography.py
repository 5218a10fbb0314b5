"""BibTeX entries of what runs implement: their model, their plugins, and their optimisers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.host.discovery import find
from ltg_mdlm.host.plugin_host import FALLBACK, import_plugin
from ltg_mdlm.reporting.run_table import read_settings
from ltg_mdlm.storage.run_folder import RunFolder

MODEL = r"""@inproceedings{samuel2023trained,
  author = {David Samuel and Andrey Kutuzov and Lilja {\O}vrelid and Erik Velldal},
  title = {Trained on 100 million words and still in shape: {BERT} meets {British National Corpus}},
  booktitle = {Findings of the Association for Computational Linguistics: {EACL} 2023},
  year = {2023},
  eprint = {2303.09859},
  archiveprefix = {arXiv}
}"""
"""LTG-BERT, the model of all runs."""

_ADAMW = r"""@inproceedings{loshchilov2019decoupled,
  author = {Ilya Loshchilov and Frank Hutter},
  title = {Decoupled Weight Decay Regularization},
  booktitle = {International Conference on Learning Representations},
  year = {2019},
  eprint = {1711.05101},
  archiveprefix = {arXiv}
}"""

OPTIMIZERS = {
    "lamb": r"""@inproceedings{you2020large,
  author = {Yang You and Jing Li and Sashank Reddi and Jonathan Hseu and Sanjiv Kumar and Srinadh Bhojanapalli and
            Xiaodan Song and James Demmel and Kurt Keutzer and Cho-Jui Hsieh},
  title = {Large Batch Optimization for Deep Learning: Training {BERT} in 76 minutes},
  booktitle = {International Conference on Learning Representations},
  year = {2020},
  eprint = {1904.00962},
  archiveprefix = {arXiv}
}""",
    "adamw": _ADAMW,
    "muon": r"""@misc{jordan2024muon,
  author = {Keller Jordan and Yuchen Jin and Vlado Boza and Jiacheng You and Franz Cesista and Laker Newhouse and
            Jeremy Bernstein},
  title = {Muon: An optimizer for hidden layers in neural networks},
  year = {2024},
  howpublished = {https://kellerjordan.github.io/posts/muon/}
}

@misc{liu2025muon,
  author = {Jingyuan Liu and Jianlin Su and others},
  title = {Muon is Scalable for {LLM} Training},
  year = {2025},
  eprint = {2502.16982},
  archiveprefix = {arXiv}
}

"""
    + _ADAMW,
}
"""Entries of the built-in optimisers. Muon leaves vectors and embeddings to AdamW."""


def bibliography(runs: Iterable[Path]) -> tuple[str, list[str]]:
    """The entries, each once, and notes on plugins whose publications are not known.

    Selected plugins count, but `uniform_mdlm`, which fills the slots of no other plugin, only if it fills one. Raises
    `UserError` if settings cannot be read.
    """
    plugins: dict[str, None] = {}
    optimizers: dict[str, None] = {}
    for run in runs:
        settings = read_settings(RunFolder(run))
        providers = {slot["plugin"] for slot in (settings.get("provenance") or {}).values()}
        selected = [FALLBACK, *(settings.get("plugins") or ())]
        plugins |= dict.fromkeys(name for name in selected if name != FALLBACK or not providers or name in providers)
        optimizers[str((settings.get("optimizer") or {}).get("name"))] = None
    texts, notes = [MODEL], []
    for name in plugins:
        try:
            text = import_plugin(find(name)).bibtex
        except UserError as error:
            notes.append(f"the publications of {name} are not known: {str(error).splitlines()[0]}")
            continue
        if isinstance(text, str) and text:
            texts.append(text)
        else:  # plugins of API 1 may use the name for something else
            notes.append(f"{name} states no publication (`bibtex` of its plugin class)")
    # Other optimisers come from plugins.
    texts += [OPTIMIZERS[name] for name in optimizers if name in OPTIMIZERS]
    entries: dict[str, None] = {}
    for text in texts:
        entries |= dict.fromkeys(entry.strip() for entry in re.split(r"(?m)^(?=@)", text) if entry.strip())
    return "\n\n".join(entries) + "\n", notes
