"""The quantizer that the settings name."""

from vqstack.errors import InputError
from vqstack.nets import registered
from vqstack.quantizer.base import Quantizer
from vqstack.quantizer.fixed import FiniteScalar, LinearlyTransformed, LookupFree
from vqstack.quantizer.moving_average import CosineVQ, MovingAverageVQ
from vqstack.quantizer.settings import KINDS, OWN, QuantizerSettings
from vqstack.quantizer.several import ProductVQ, ResidualVQ

KINDS |= {
    "vq": MovingAverageVQ,
    "cosine": CosineVQ,
    "fsq": FiniteScalar,
    "lfq": LookupFree,
    "simvq": LinearlyTransformed,
    "residual": ResidualVQ,
    "product": ProductVQ,
    "cluster": None,  # no quantizer, but a table of codes: see vqstack/cluster.py
}


def register_quantizer(kind: str, quantizer: type[Quantizer]) -> None:
    """Let levels have quantizers of this class where ``quantizer.kind`` of their settings says so.

    Args:
        kind: a name that is not taken by another class.
        quantizer: built with its :class:`QuantizerSettings`, whose ``options`` are its own.
    """
    if KINDS.setdefault(kind, quantizer) is not quantizer:
        raise ValueError(f"quantizer: {kind} is registered for another class: choose another name")


def build_quantizer(settings: QuantizerSettings) -> Quantizer:
    """The quantizer that the settings name; InputError where nothing is registered under that name."""
    if settings.options and settings.kind in OWN:
        raise InputError(f"quantizer.options: {settings.kind} takes none: leave them out")
    return registered(KINDS, settings.kind, "quantizer")(settings)
