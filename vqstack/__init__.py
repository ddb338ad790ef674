"""Discrete hierarchies of codes: stacked vector-quantized autoencoders whose numbers are all likelihoods.

    model = vqstack.train("digits", out="runs/digits")      # a recipe; or images and labels in memory
    model = vqstack.load("runs/digits")                     # a finished run, or a released model
    codes = model.encode(pixels)                            # [z_1, …, z_L]
    images = model.sample(16, seed=1).pixels                # uint8 [16, c, h, w]

The names below are imported when they are first used, because torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqstack.code_model import CodeModelSettings, build_code_model
    from vqstack.code_use import use_of_codes
    from vqstack.codes import CodeDataset
    from vqstack.config import RunConfig
    from vqstack.edited import Edited
    from vqstack.editing import blend, interpolate, reconstruct, splice
    from vqstack.encoder import Encoder
    from vqstack.errors import InputError
    from vqstack.fit import Callback
    from vqstack.images import ImageSettings, load_splits
    from vqstack.ledger import Ledger
    from vqstack.library import load, recipe, train
    from vqstack.model import HierarchicalModel
    from vqstack.model_settings import ModelSettings, SamplingSettings
    from vqstack.phases import read_images, split_of_run
    from vqstack.publish import push
    from vqstack.quantizer import Quantizer, QuantizerSettings, build_quantizer
    from vqstack.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "CodeDataset",
    "CodeModelSettings",
    "Edited",
    "Encoder",
    "HierarchicalModel",
    "ImageSettings",
    "InputError",
    "Ledger",
    "ModelSettings",
    "Quantizer",
    "QuantizerSettings",
    "RunConfig",
    "SamplingSettings",
    "Tokenizer",
    "blend",
    "build_code_model",
    "build_quantizer",
    "interpolate",
    "load",
    "load_splits",
    "push",
    "read_images",
    "recipe",
    "reconstruct",
    "splice",
    "split_of_run",
    "train",
    "use_of_codes",
]
_PLACES = {
    "code_model": ("CodeModelSettings", "build_code_model"),
    "codes": ("CodeDataset",),
    "config": ("RunConfig",),
    "code_use": ("use_of_codes",),
    "edited": ("Edited",),
    "editing": ("blend", "interpolate", "reconstruct", "splice"),
    "encoder": ("Encoder",),
    "errors": ("InputError",),
    "fit": ("Callback",),
    "images": ("ImageSettings", "load_splits"),
    "ledger": ("Ledger",),
    "library": ("load", "recipe", "train"),
    "model": ("HierarchicalModel",),
    "model_settings": ("ModelSettings", "SamplingSettings"),
    "phases": ("read_images", "split_of_run"),
    "publish": ("push",),
    "quantizer": ("Quantizer", "QuantizerSettings", "build_quantizer"),
    "tokenizer": ("Tokenizer",),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(f"vqstack.{module}"), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
