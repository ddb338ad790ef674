"""What is trained in which order: the levels, each on the codes of the frozen ones below, then refiners, then prior.

A renderer comes last: it reads codes, and nothing reads it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from vqstack.cluster import ClusterLevel, neighbours
from vqstack.code_model import CodeModel, JointEncoder
from vqstack.config import RunConfig
from vqstack.fit import FitSettings, Source
from vqstack.joint import JointDecoders, JointLevels
from vqstack.level import CodeLevel
from vqstack.model import HierarchicalModel
from vqstack.phases.data import RunData
from vqstack.renderer import RenderedLevel, RendererSettings, RendererTraining
from vqstack.reuse import ENCODERS


def _nothing() -> None: ...


@dataclass(frozen=True)
class Phase:
    """One training.

    Attributes:
        name: of its folder.
        module: what is trained, in place; its ``forward`` is the objective.
        source: from a split and, in training, its settings to where the batches come from.
        settings: of the training.
        below: number of the map that it is trained on, 0: images; names its random numbers.
        begin: gives the weights that training begins with, unless they are those of another model.
        prepare: what is done first in any case, with what the phases before have trained.
        frozen: parameters of the module that stay as they are.
        refines: the level, of a refiner.
    """

    name: str
    module: nn.Module
    source: Callable[[str, FitSettings | None], Source]
    settings: FitSettings
    below: int = 0
    begin: Callable[[], None] = _nothing
    prepare: Callable[[], None] = _nothing
    frozen: Sequence[nn.Parameter] = ()
    refines: int | None = None


def phases_of(config: RunConfig, model: HierarchicalModel, data: RunData) -> list[Phase]:
    """The phases of a run, in their order."""
    levels = range(1, len(model.stack) + 1)
    first = _at_once(config, model, data) if config.at_once else [_level(config, model, data, n) for n in levels]
    refiners = [_refiner(config, model, data, position) for position in range(len(config.refiners))]
    renderer = [] if config.renderer is None else [_renderer(config, model, data)]
    return [*first, *refiners, _prior(config, model, data), *renderer]


def _level(config: RunConfig, model: HierarchicalModel, data: RunData, number: int) -> Phase:
    """``enc_l*, dec_l* = argmin E[-ln P_dec_l(z_{l-1} | z_l)]``, the levels below frozen.

    So are blocks shared with a level below: they are trained with the first level that has them. Where the settings
    train an encoder with its refiner, or with the renderer, both are the module.
    """
    if number == 1 and config.renderer is not None and config.renderer.joint_encoder:
        return _rendered_level(config, model, data)
    stack, every = model.stack, config.train_levels
    level = stack.level(number)
    weight = sum(settings.joint_encoder for settings in config.refiners if settings.level == number)

    def begin() -> None:
        if isinstance(level, CodeLevel):
            level.start_from(stack.level(number - 1))
        if isinstance(level, ClusterLevel):
            _learn_clusters(level, data)

    return Phase(
        f"level-{number}",
        JointEncoder(level, _refiner_of(model, number), weight) if weight else level,
        partial(data.maps, level=number - 1),
        every[0 if len(every) == 1 else number - 1],
        number - 1,
        begin,
        (lambda: _know(model, number)) if weight else _nothing,
        stack.borrowed(number),
    )


def _rendered_level(config: RunConfig, model: HierarchicalModel, data: RunData) -> Phase:
    """``argmin E[-ln P_dec_1(y | z_1) + w distance(y, g(z_1))]`` over level 1 and the renderer g."""
    assert config.renderer is not None
    settings = config.renderer.model_copy(update={"adversary": config.renderer.game_of_level})
    rendering, weight = _rendering(model, settings), settings.joint_encoder
    return Phase(
        "level-1",
        RenderedLevel(model.stack.level(1), rendering, weight),
        partial(data.maps, level=0),
        config.train_levels[0],
        prepare=lambda: rendering.compare_by(data.perceptual(settings.perceptual)),
    )


def _renderer(config: RunConfig, model: HierarchicalModel, data: RunData) -> Phase:
    """``argmin E[distance(y, g(z_1))]`` over the renderer g, the codes frozen; outside the ledger."""
    assert config.renderer is not None
    rendering, kind = _rendering(model, config.renderer), config.renderer.perceptual

    def prepare() -> None:
        rendering.compare_by(data.perceptual(kind))

    return Phase("renderer", rendering, data.rendered, config.train_renderer, prepare=prepare)


def _rendering(model: HierarchicalModel, settings: RendererSettings) -> RendererTraining:
    assert model.renderer is not None
    return RendererTraining(model.renderer, settings)


def _at_once(config: RunConfig, model: HierarchicalModel, data: RunData) -> list[Phase]:
    """``argmin E[-sum_l ln P_dec_l(z_{l-1} | z_l)]`` over all levels at once, then over the decoders alone.

    While the levels are trained together their codes move under the decoders; the second phase lets these catch up.
    Encoders of another run are in the place of the first phase.
    """
    stack, decoders = model.stack, JointDecoders(model.stack)
    tuned = {id(parameter) for parameter in decoders.trained()}
    frozen = [parameter for parameter in stack.parameters() if id(parameter) not in tuned]
    return [
        Phase("joint" if config.joint else ENCODERS, JointLevels(stack), data.maps, config.train_joint),
        Phase("decoders", decoders, data.maps, config.train_decoders, frozen=frozen),
    ]


def _refiner(config: RunConfig, model: HierarchicalModel, data: RunData, position: int) -> Phase:
    """A better ``P(z_{l-1} | z_l)`` over the frozen codes.

    It starts as the decoder of level l, or as what was trained with that level's encoder.
    """
    number, every = config.refiners[position].level, config.train_refiners
    return Phase(
        f"refiner-{number}",
        _refiner_of(model, number),
        partial(data.refined, level=number),
        every[0 if len(every) == 1 else position],
        number - 1,
        prepare=lambda: _know(model, number),
        refines=number,
    )


def _prior(config: RunConfig, model: HierarchicalModel, data: RunData) -> Phase:
    """``pri* = argmin E[-ln P_pri(z_L | label)]``, the stack frozen.

    With ``unified`` over all maps of codes at once, ``argmin E[-ln P(z_1 … z_L | label)]``.
    """
    prior, unified, levels = model.prior, model.unified, len(model.stack)

    def prepare() -> None:
        prior.know_codebook(model.stack.level(levels).quantizer.codebook())
        for number in range(2, levels + 1) if unified is not None else ():
            _know(model, number)

    if unified is not None:
        return Phase("transformer", unified, data.all_maps, config.train_prior, 1, prepare=prepare)
    source = partial(data.maps, level=levels, reads=prior.settings.reads)
    return Phase("prior", prior, source, config.train_prior, levels, prepare=prepare)


def _refiner_of(model: HierarchicalModel, number: int) -> CodeModel:
    refiner = model.refiner(number)
    assert refiner is not None
    return refiner


def _know(model: HierarchicalModel, number: int) -> None:
    """Tell the refiner of a level which of the codes that it models are near each other, and how they follow."""
    _refiner_of(model, number).start_from(model.stack.level(number).head)
    if number > 1:
        _refiner_of(model, number).know_codebook(model.stack.level(number - 1).quantizer.codebook())


@torch.no_grad()
def _learn_clusters(level: ClusterLevel, data: RunData) -> None:
    """The table of a cluster level, from the training images as they are scored: the same however often it is made.

    Counts are whole numbers, so the number of processes makes no difference.
    """
    below, pixels, accelerator = data.stack.level(level.number - 1), data.pixels("train"), data.accelerator
    size, device = below.quantizer.size, accelerator.device
    counts = torch.zeros(size, dtype=torch.int64, device=device)
    beside = torch.zeros(size, size, dtype=torch.int64, device=device)
    mine = torch.arange(len(pixels))[accelerator.process_index :: accelerator.num_processes]
    for indices in mine.split(data.config.encode_batch) if len(mine) else ():
        codes = data.stack.encode(pixels[indices.to(pixels.device)].to(device), below.number)[-1]
        counts += torch.bincount(codes.flatten(), minlength=size)
        beside += neighbours(codes, size)
    level.learn_from(below, accelerator.reduce(counts), accelerator.reduce(beside))
