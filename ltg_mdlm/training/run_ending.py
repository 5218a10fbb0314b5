"""What a finished run prints after its figures: samples, if their grammar is known, and the commands to go on with."""

from __future__ import annotations

import shlex
from pathlib import Path

from ltg_mdlm.core.distributed import Ranks
from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.corpus import Corpus
from ltg_mdlm.data.synthetic.builtin import is_builtin
from ltg_mdlm.data.synthetic.recogniser import acceptance, judge_grammar
from ltg_mdlm.inference.sampling import generate
from ltg_mdlm.inference.sampling_rule import SamplingRule
from ltg_mdlm.inference.trained_model import open_model

SAMPLES, SHOWN, LENGTH = 16, 3, 48
"""Samples whose sentences are judged, those that are printed, and their tokens."""


def ending_text(folder: Path, corpus: Corpus) -> str:
    """Samples of the run in `folder` with the share of grammatical sentences, and three commands.

    Only models of the built-in corpus are sampled, because only its sentences can be judged.
    """
    path = shlex.quote(str(folder))
    commands = [f"ltg-mdlm generate {path} --count 4", f"ltg-mdlm watch {path}"]
    if not is_builtin(corpus):
        return "\n".join(["next:", *(f"  {command}" for command in [*commands, f"ltg-mdlm report {path}"])])
    try:
        trained = open_model(folder, Ranks.alone())
        sampler = "confidence" if "masked" in trained.modes else "autoregressive"
        samples = generate(trained, SamplingRule(sampler=sampler), length=LENGTH, count=SAMPLES)
    except UserError as error:
        shown = [f"no samples: {error}"]
    else:
        share = acceptance(judge_grammar([s.text for s in samples], [s.ended for s in samples]))
        shown = [
            f"{SHOWN} of {SAMPLES} samples (--sampler {sampler}); the grammar accepts"
            f" {share['grammatical_sentences']:.0%} of their {share['sentences']:.0f} complete sentences:",
            *(f"\n{sample.text} ..." for sample in samples[:SHOWN]),
        ]
    return "\n".join([*shown, "", "next:", *(f"  {command}" for command in [*commands, "ltg-mdlm sweep run built_in"])])
