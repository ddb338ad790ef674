"""The quantizer that the settings name."""

from vqstack.quantizer.base import Quantizer
from vqstack.quantizer.fixed import FiniteScalar, LinearlyTransformed, LookupFree
from vqstack.quantizer.moving_average import CosineVQ, MovingAverageVQ
from vqstack.quantizer.settings import QuantizerSettings

KINDS: dict[str, type[Quantizer]] = {
    "vq": MovingAverageVQ,
    "cosine": CosineVQ,
    "fsq": FiniteScalar,
    "lfq": LookupFree,
    "simvq": LinearlyTransformed,
}


def build_quantizer(settings: QuantizerSettings) -> Quantizer:
    """The quantizer that the settings name."""
    return KINDS[settings.kind](settings)
