"""The quantizer that the settings name."""

from vqstack.quantizer.base import Quantizer
from vqstack.quantizer.fixed import FiniteScalar, LinearlyTransformed, LookupFree
from vqstack.quantizer.moving_average import CosineVQ, MovingAverageVQ
from vqstack.quantizer.settings import QUANTIZERS, QuantizerSettings
from vqstack.quantizer.several import ProductVQ, ResidualVQ

QUANTIZERS |= {
    "vq": MovingAverageVQ,
    "cosine": CosineVQ,
    "fsq": FiniteScalar,
    "lfq": LookupFree,
    "simvq": LinearlyTransformed,
    "residual": ResidualVQ,
    "product": ProductVQ,
    "cluster": None,  # no quantizer, but a table of codes: see vqstack/cluster.py
}
register_quantizer = QUANTIZERS.register
"""Let ``quantizer.kind`` name a class of :class:`Quantizer`, built with its settings, whose ``options`` are its own."""


def build_quantizer(settings: QuantizerSettings) -> Quantizer:
    """The quantizer that the settings name; InputError where nothing is registered under that name."""
    return QUANTIZERS.find(settings.kind, settings.options)(settings)
