"""The repeated blocks of a module: what they keep for the backward pass, and what is gathered at a time of shards.

A block is a module with a true attribute ``is_block``. It is always called, never reached into.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks(module: nn.Module) -> list[nn.Module]:
    """Those of a module, each once."""
    return [part for part in module.modules() if getattr(part, "is_block", False)]


def recompute_blocks(module: nn.Module) -> None:
    """Let blocks keep nothing but their inputs for the backward pass, and compute the rest again in it.

    Gradients are the same, to the bit; random numbers are drawn again as they were (Chen et al. 2016).
    """
    for block in blocks(module):
        if "forward" not in vars(block):
            block.forward = partial(_recomputed, block.forward)  # type: ignore[method-assign]  # follows a deep copy


def keep_blocks(module: nn.Module) -> None:
    """Undo :func:`recompute_blocks`."""
    for block in blocks(module):
        vars(block).pop("forward", None)


def _recomputed(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
