"""A second decoder of level 1, to look at: no likelihood, no row of the ledger, unknown to the codec.

Files in reading order: ``perceptual`` (how different two pictures look), ``settings``, ``network``, ``adversary`` (the
discriminator and the game against it), ``training``.
"""

from vqstack.renderer.adversary import Adversary
from vqstack.renderer.network import Renderer
from vqstack.renderer.perceptual import (
    PERCEPTUAL,
    Distance,
    LayerDistance,
    Layers,
    Lpips,
    check_colours,
    check_packages,
    efficientnet_layers,
    lpips_distance,
    pictures_of,
    pixels_of,
    register_perceptual,
)
from vqstack.renderer.settings import AdversarySettings, RendererSettings
from vqstack.renderer.training import RenderedLevel, RendererTraining

__all__ = [
    "PERCEPTUAL",
    "Adversary",
    "AdversarySettings",
    "Distance",
    "LayerDistance",
    "Layers",
    "Lpips",
    "RenderedLevel",
    "Renderer",
    "RendererSettings",
    "RendererTraining",
    "check_colours",
    "check_packages",
    "efficientnet_layers",
    "lpips_distance",
    "pictures_of",
    "pixels_of",
    "register_perceptual",
]
