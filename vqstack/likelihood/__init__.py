"""Normalised distributions over pixels and over code maps, and how values are drawn from them.

Files in reading order: ``drawing``, ``factors``, ``base`` (distributions as chains of factors), ``categorical``,
``neighbours``, ``mixture``, ``conditioned`` (guidance, known sites), ``heads`` (from the numbers of a network to a
distribution) and ``chain`` (several codes a site).
"""

from vqstack.likelihood.base import Distribution, walked_by_site, walked_log_prob
from vqstack.likelihood.categorical import Bernoulli, Categorical, Frequencies
from vqstack.likelihood.chain import ChainHead, code_head
from vqstack.likelihood.conditioned import Clamped, Guided, Known
from vqstack.likelihood.drawing import Draw, draw_values, noise
from vqstack.likelihood.factors import Factor, Ordered, Table
from vqstack.likelihood.heads import (
    CodeHead,
    Head,
    PixelHead,
    PixelSettings,
    by_site,
    pixel_head,
    register_pixels,
    site_factors,
)
from vqstack.likelihood.mixture import LogisticMixture, logistic_parameters
from vqstack.likelihood.neighbours import Near

__all__ = [
    "Bernoulli",
    "Categorical",
    "ChainHead",
    "Clamped",
    "CodeHead",
    "Distribution",
    "Draw",
    "Factor",
    "Frequencies",
    "Guided",
    "Head",
    "Known",
    "LogisticMixture",
    "Near",
    "Ordered",
    "PixelHead",
    "PixelSettings",
    "Table",
    "by_site",
    "code_head",
    "draw_values",
    "logistic_parameters",
    "noise",
    "pixel_head",
    "register_pixels",
    "site_factors",
    "walked_by_site",
    "walked_log_prob",
]
