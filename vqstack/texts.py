"""Texts as conditions: a pretrained encoder, the user's choice by name, turns each into a vector or a sequence."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from vqstack.errors import InputError, extra, reason
from vqstack.settings import Settings

BATCH = 64
"""Texts that are encoded at a time."""


class TextSettings(Settings):
    """Which encoder turns texts into floats."""

    name: str = Field(max_length=400, description="OWNER/NAME on the hub, or a folder, of a model for transformers.")
    revision: str | None = Field(default=None, max_length=400, description="Branch, tag or commit; empty: the newest.")
    pooled: bool = Field(
        default=True,
        description="The mean of the vectors of a text's tokens; switched off: the sequence of these vectors.",
    )
    length: int = Field(
        default=64, ge=1, le=4096, description="Tokens that are read of a text, count; more are cut off."
    )


def encode_texts(settings: TextSettings, texts: Sequence[str]) -> NDArray[np.float32]:
    """The last hidden states of the encoder, [n, d], or [n, length, d] where they are not pooled.

    Past the end of a text a sequence holds zeros. InputError where the encoder cannot be loaded; no code
    of the model is run, nothing unpickled.
    """
    tokenizer, model = _loaded(settings)
    found = list[NDArray[np.float32]]()
    for start in range(0, len(texts), BATCH):
        tokens = tokenizer(
            list(texts[start : start + BATCH]),
            padding="max_length",
            truncation=True,
            max_length=settings.length,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state.float()
        there = tokens["attention_mask"][..., None]
        vectors = hidden * there
        if settings.pooled:
            vectors = vectors.sum(1) / there.sum(1).clamp(min=1)
        found.append(vectors.numpy())
    return np.concatenate(found)


@cache
def _loaded(settings: TextSettings) -> tuple[Any, Any]:
    """Tokenizer and encoder."""
    library = extra("transformers", 'texts are encoded by transformers: pip install "vqstack[text]"')
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(settings.name, revision=settings.revision)
        model = library.AutoModel.from_pretrained(settings.name, revision=settings.revision, use_safetensors=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"text_encoder: {settings.name} cannot be loaded ({reason(error)}): name a model for transformers, on the "
            "hub or in a folder"
        ) from error
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    return tokenizer, encoder.eval()
