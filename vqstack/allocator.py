"""Memory that the C library keeps between the steps of a training on the CPU."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``, as malloc.h numbers them."""


def keep_freed_memory() -> None:
    """Let glibc hold up to 2 GiB of what was freed, in place of returning it to the system and asking for it again.

    Every step frees and takes tensors of the same sizes. Pages that went back to the system are zeroed when they are
    touched again, which costs a step on the CPU up to a seventh of its time (docs/benchmarks.md). Other C libraries are
    left alone, and so is glibc where a person has set its own variables (``MALLOC_…_``, ``GLIBC_TUNABLES``).
    """
    told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] == "glibc" and not told:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)  # once this is set, glibc no longer raises either bound by itself
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
