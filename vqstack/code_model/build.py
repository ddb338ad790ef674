"""Code models from their settings: a prior over codes, a refiner of a level; what a refiner sees of its level."""

import torch
from torch import nn

from vqstack.code_model.autoregressive import AutoregressiveCodeModel
from vqstack.code_model.base import CodeModel, Parent
from vqstack.code_model.masked import MaskedCodeModel
from vqstack.code_model.settings import CodeModelSettings, RefinerSettings
from vqstack.conditions import ConditionSettings
from vqstack.level import Level
from vqstack.likelihood import code_head
from vqstack.shapes import AnyCodes

_FAMILIES: dict[str, type[CodeModel]] = {"autoregressive": AutoregressiveCodeModel, "masked": MaskedCodeModel}


def build_code_model(
    settings: CodeModelSettings,
    map_shape: tuple[int, ...],
    codebook_size: int,
    classes: int = 0,
    vector_dim: int = 0,
    given: ConditionSettings | None = None,
    chain: tuple[int, ...] = (),
) -> CodeModel:
    """A model of code maps that stands on its own, such as the prior; with a chain (D,) a site has D codes."""
    head = code_head(chain, codebook_size, settings.dim)
    return _FAMILIES[settings.family](settings, map_shape, head, classes, vector_dim=vector_dim, given=given)


def build_refiner(
    settings: RefinerSettings,
    level: Level,
    classes: int,
    backbone: nn.Module | None = None,
    given: ConditionSettings | None = None,
) -> CodeModel:
    """A model of what lies below a level, given that level's codes; starts as the level's own decoder.

    Args:
        settings, level: of the refiner; whose map below it models.
        classes: number of class labels in the data; 0: none.
        backbone: of another model, to be shared with it; none: one of its own.
        given: floats that each image is given; none: no floats.
    """
    family = _FAMILIES[settings.family]
    above = (level.scale, level.context_features)
    return family(settings, level.below, level.head.copied(), classes, *above, level.vector_dim, backbone, given)


@torch.no_grad()
def parent_of(level: Level, codes: AnyCodes, share: torch.Tensor | None = None) -> Parent:
    """What a refiner sees of codes z_l: the decoder's output, features of each site, the share of replaced codes.

    Args:
        level: l, frozen.
        codes: z_l.
        share: of replaced codes in each image, [b]; none: they are all genuine.
    """
    with torch.autocast(codes.device.type, enabled=False):
        base, features = level.base_and_context(level.quantizer.unchecked_lookup(codes), codes)
    return Parent(base, features, features.new_zeros(codes.shape[0]) if share is None else share.to(features))
