"""Freed memory is kept: a step whose tensors are those of the step before touches few new pages."""

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, torch
{first}
def step():
    return [torch.ones(2**24) for _ in range(2)]  # 64 MiB each, freed when the list is
for _ in range(10):  # until the heap has found its size
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
KEEP = "from vqstack.allocator import keep_freed_memory; keep_freed_memory()"


def faults(first: str, **variables: str) -> int:
    """Pages that ten equal steps touched for the first time, in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", COUNT.format(first=first)]
    return int(subprocess.run(command, env=clean | variables, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept_unless_a_person_says_otherwise() -> None:
    kept, returned = faults(KEEP), faults(KEEP, MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert kept < returned / 10 and kept < faults("") / 10
