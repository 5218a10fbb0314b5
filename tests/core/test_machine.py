"""What the program asks of the machine."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from ltg_mdlm.core.machine import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    tensors = [torch.ones(1 << 18) for _ in range(20)]  # 20 MiB
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is the C library of Linux")
def test_the_memory_of_freed_tensors_is_used_again_without_page_faults():
    """Of 10 steps that need 20 MiB each; without the call, every step maps its pages anew."""
    # Otherwise glibc raises these values by itself if anything has freed a large block.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}

    def page_faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert page_faults("keep") < page_faults("default") / 10
