"""For all tests: one thread each, since they share the cores, and no deadline that a busy machine would miss.

Every session sees the same plugins, those of the distributions in this repository included.
"""

import os

import torch
from hypothesis import settings
from support.distributions import find_distributions

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
settings.register_profile("shared_machine", deadline=None)
settings.load_profile("shared_machine")
find_distributions()
