"""Everything random in a step starts from a seed of its own; and the switch to algorithms that repeat to the bit."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_everything(*key: int) -> None:
    """Start all global generators from a seed made of ``key``."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # the call above formats a traceback for devices that may come: 2 ms a step
        torch.default_generator.manual_seed(seed)


def deterministic_algorithms() -> None:
    """Let GPUs use only algorithms that give the same bits each time, at some cost in speed."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


@contextmanager
def any_algorithms() -> Iterator[None]:
    """Inside, algorithms that do not repeat to the bit are allowed: some operations of sampling have no other."""
    before = torch.are_deterministic_algorithms_enabled()
    if before:  # the call alone imports the compiler
        torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        if before:
            torch.use_deterministic_algorithms(True)
