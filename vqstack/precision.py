"""The number format that networks compute in where they need not be exact."""

from typing import Literal

import torch

Precision = Literal["no", "fp16", "bf16"]


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which networks compute in this format: ``no`` leaves them in float32.

    Distances to codes, likelihoods and sums stay in float32 by themselves.
    """
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "no")
