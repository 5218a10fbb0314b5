"""A plugin for tests: masking that adapts to what the model finds hard, and faults at chosen moments.

The environment variable FAULTS lists faults, `{"at": MOMENT, "do": WHAT}`, each with an optional `rank` (default 0),
`once`, a file whose presence prevents the fault and which it leaves behind, and what to wait for before it is done: a
file (`after`), or a signal from elsewhere (`until`).

Moments: `start-up`, `validation`, `step 5` (the end of the fifth step), `loss 5` (while its loss is computed).  What:
signals, one after the other ("SIGUSR1 SIGTERM"); "raise"; "nan"; "small files" (from then on no file may grow beyond
200 kB); "no save" (the next checkpoint cannot be written), until which "save failed" waits; "wait", and nothing more.
"""

import json
import os
import resource
import signal
import time
from pathlib import Path

import torch
from ltg_mdlm_plugins.objectives import DiffusionObjective

from ltg_mdlm.api import Component, MaskingStrategy, Plugin, PluginOptions, hookimpl
from ltg_mdlm.storage import checkpoint


class Faults:
    """What happens when."""

    def __init__(self, rank):
        listed = json.loads(os.environ.get("FAULTS", "[]"))
        self._faults = [fault for fault in listed if fault.get("rank", 0) == rank]
        self._save_failed = False

    def happen(self, moment):
        """Do what is listed for this moment; True if the loss shall not be a number."""
        due = [fault for fault in self._faults if fault["at"] == moment and not exists(fault.get("once"))]
        for fault in due:
            signal_came = watched(fault["until"]) if "until" in fault else lambda: True
            if "once" in fault:
                Path(fault["once"]).touch()
            while not signal_came() or ("after" in fault and not exists(fault["after"])):
                time.sleep(0.01)
            self._do(fault["do"])
        return any(fault["do"] == "nan" for fault in due)

    def _failing(self, write_parts):
        def fail(*_):
            checkpoint._write_parts, self._save_failed = write_parts, True
            raise OSError("the quota is used up")

        return fail

    def _do(self, what):
        if what == "raise":
            raise ArithmeticError("the culprit")
        if what == "small files":
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        if what == "no save":
            checkpoint._write_parts = self._failing(checkpoint._write_parts)
        while what == "save failed" and not self._save_failed:
            time.sleep(0.01)
        for word in what.split():
            if word.startswith("SIG"):
                os.kill(os.getpid(), signal.Signals[word])


def watched(name):
    """Whether the signal has come, from now on; who handled it until now still does."""
    came, handle = [], signal.getsignal(signal.Signals[name])

    def note(*received):
        came.append(received)
        handle(*received)

    signal.signal(signal.Signals[name], note)
    return lambda: bool(came)


def exists(path):
    return path is not None and Path(path).exists()


class AdaptiveMasking(MaskingStrategy):
    """Masks token types more often whose loss has been high: state that later steps depend on."""

    keeps_rate = False

    def __init__(self, ctx, faults):
        super().__init__(ctx.mask_id)
        self._sum_over_ranks, self._faults = ctx.sum_over_ranks, faults
        self._nll_V = torch.full((ctx.vocab_size,), 7.0)
        self._new_2V = torch.zeros(2, ctx.vocab_size)

    def mask_probability(self, batch, noise, step):
        if step.step == 0 and step.progress == 0.5:  # training has this progress in another step
            self._faults.happen("validation")
        return (noise.rate_B.float().unsqueeze(1) * self._nll_V[batch.ids_BT] / 7).clamp(max=1)

    def observe(self, observation):
        label_N, nll_N = observation.supervised.label_N, observation.nll_N.nan_to_num(7.0)
        self._new_2V.index_add_(1, label_N, torch.stack([nll_N, torch.ones_like(nll_N)]))

    def step_end(self, step):
        nll_V, count_V = self._sum_over_ranks(self._new_2V)
        self._nll_V = torch.where(count_V > 0, 0.8 * self._nll_V + 0.2 * nll_V / count_V.clamp(min=1), self._nll_V)
        self._new_2V.zero_()

    def state_dict(self):
        return {"nll": self._nll_V}

    def load_state_dict(self, state):
        self._nll_V = state["nll"].clone()


class FaultyObjective(DiffusionObjective):
    def __init__(self, faults):
        super().__init__(1.0)
        self._faults = faults

    def weights(self, supervised, step):
        nll_weight_N, z_weight_N = super().weights(supervised, step)
        factor = float("nan") if self._faults.happen(f"loss {step.step + 1}") else 1.0
        return nll_weight_N * factor, z_weight_N


class FaultsAfterSteps(Component):
    def __init__(self, faults):
        self._faults = faults

    def step_end(self, step):
        self._faults.happen(f"step {step.step + 1}")


class Options(PluginOptions):
    adapt: bool = True


class Faulty(Plugin[Options]):
    """Adapts, and fails when told to; without `adapt` it fills no slot, so that other plugins can meet faults."""

    options_model = Options

    @hookimpl
    def ltg_mdlm_masking(self, ctx):
        return AdaptiveMasking(ctx, Faults(ctx.rank)) if self.options.adapt else None

    @hookimpl
    def ltg_mdlm_objective(self, ctx):
        return FaultyObjective(Faults(ctx.rank)) if self.options.adapt else None

    @hookimpl
    def ltg_mdlm_observers(self, ctx):
        faults = Faults(ctx.rank)
        faults.happen("start-up")
        return [FaultsAfterSteps(faults)]
