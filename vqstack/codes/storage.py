"""What both forms of stored codes stand on: number types, fingerprints."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ASIDE = ".tmp"  # ending of a file that is still being written


def smallest_dtype(vocabulary: int) -> np.dtype[Any]:
    """The smallest of uint8, uint16 and uint32 that holds the codes 0 … ``vocabulary`` - 1."""
    for name in ("uint8", "uint16", "uint32"):
        if vocabulary <= np.iinfo(name).max + 1:
            return np.dtype(name)
    raise ValueError(f"no unsigned integer of at most 32 bits holds {vocabulary} codes")


def to_stored(codes: Tensor, vocabulary: int) -> NDArray[Any]:
    """int64 codes as the smallest unsigned integer. A code outside 0 … ``vocabulary`` - 1 is a ValueError."""
    values = codes.cpu().numpy()
    if values.size and not (values.min() >= 0 and values.max() < vocabulary):
        raise ValueError(f"codes from {values.min()} to {values.max()} in a vocabulary of {vocabulary}")
    return values.astype(smallest_dtype(vocabulary))


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of the sorted names, dtypes, shapes and bytes of ``state``, wherever its tensors lie."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
