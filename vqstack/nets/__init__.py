"""Networks: residual blocks, a path down to a code map and a path up from one.

They map float tensors to float tensors and know neither codes nor losses. ``protocols`` (what a level's networks keep,
and their registry), ``blocks`` (convolutions of any number of axes, residual and attention blocks), ``residual`` and
``staged`` (the project's own pairs), ``state`` (names under which numbers are stored).
"""

from vqstack.nets.blocks import Attention, ResidualBlock, convolution, fold, norm_layer, over_map, unfold
from vqstack.nets.protocols import (
    NETWORKS,
    DecoderNetwork,
    EncoderNetwork,
    build_network,
    check_output,
    register_networks,
)
from vqstack.nets.residual import Down, ScalingPath, Trunk, Up
from vqstack.nets.staged import Growing, Shrinking, StagedDown, StagedPath, StagedUp, stages_of
from vqstack.nets.state import rename_state, store_once

__all__ = [
    "NETWORKS",
    "Attention",
    "DecoderNetwork",
    "Down",
    "EncoderNetwork",
    "Growing",
    "ResidualBlock",
    "ScalingPath",
    "Shrinking",
    "StagedDown",
    "StagedPath",
    "StagedUp",
    "Trunk",
    "Up",
    "build_network",
    "check_output",
    "convolution",
    "fold",
    "norm_layer",
    "over_map",
    "register_networks",
    "rename_state",
    "stages_of",
    "store_once",
    "unfold",
]

register_networks("residual", Down, Up)
register_networks("staged", StagedDown, StagedUp)
