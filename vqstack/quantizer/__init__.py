"""Vector quantizers behind one interface.

``vector-quantize-pytorch`` supplies the training rules (exponential moving averages, straight-through gradients,
entropy terms). These adapters hide its differences: one return type, int64 codes, flat ``[b, n, d]`` calls, float32
distances, no side effect outside training, revival of dead codes relative to expected use, and a nearest-code search
for encoding that needs bounded memory.

Files in reading order: ``settings``, ``base`` (the interface), ``moving_average``, ``fixed`` (grids of codes),
``several`` (codes a site) and ``build``.
"""

from vqstack.quantizer.base import Codebook, NearestCode, Quantized, Quantizer, Usage, in_chunks, nearest, usage
from vqstack.quantizer.build import build_quantizer, register_quantizer
from vqstack.quantizer.fixed import FiniteScalar, LinearlyTransformed, LookupFree
from vqstack.quantizer.moving_average import CosineVQ, MovingAverageVQ
from vqstack.quantizer.settings import QuantizerSettings, fsq_levels
from vqstack.quantizer.several import ProductVQ, ResidualVQ, SeveralCodes

__all__ = [
    "Codebook",
    "CosineVQ",
    "FiniteScalar",
    "LinearlyTransformed",
    "LookupFree",
    "MovingAverageVQ",
    "NearestCode",
    "ProductVQ",
    "Quantized",
    "Quantizer",
    "QuantizerSettings",
    "ResidualVQ",
    "SeveralCodes",
    "Usage",
    "build_quantizer",
    "fsq_levels",
    "in_chunks",
    "nearest",
    "register_quantizer",
    "usage",
]
