"""The server that starts the processes of `run_on_ranks`.

It imports torch and the trainer once, which takes seconds, and every process is a copy of it. Started early, it does so
while the calling process does something else; this module imports nothing that takes time.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

_IMPORTED = (
    "ltg_mdlm.testing.ranks",
    "torch._dynamo",  # data parallelism imports it
    "ltg_mdlm.training.launch",
    "ltg_mdlm.testing.training_checks",
    "ltg_mdlm_plugins.freq_mdlm",
    "ltg_mdlm_plugins.gpt_bert",
)
"""Modules that take seconds to import, and that most processes need."""


def start_server() -> ForkServerContext:
    """Start the server unless it is running, without waiting for it, and return its context."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    # The server is started elsewhere, because it would import modules from the current folder, such as a `numpy.py`.
    # The processes that it starts change to the folder of this process.
    current = os.getcwd()
    os.chdir(os.sep)
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(current)
    return context
