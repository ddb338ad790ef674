"""Pictures of where training stands."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Integer
from torch import Tensor, nn

from vqstack.code_model import CodeModel, JointEncoder, UnifiedCodeModel
from vqstack.joint import JointDecoders, JointLevels
from vqstack.level import Level
from vqstack.model import HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.renderer import RenderedLevel, RendererTraining, pixels_of
from vqstack.shapes import Floats, Labels, Pixels


def picture(
    model: HierarchicalModel,
    trained: nn.Module,
    refines: int | None,
    shown: Pixels,
    labels: Labels | None,
    condition: Floats | None,
    count: int,
    seed: int,
) -> Integer[Tensor, "all c *pixels"]:
    """Images above their reconstructions, from one level or from all; above variations of them; samples of the prior.

    Args:
        model: everything around what is being trained.
        trained: levels, a level, a refiner, the renderer, the prior or the transformer of all maps; may be an
            average of the weights.
        refines: the level, where it is a refiner.
        shown: images of the first row, where there is one, on the model's device.
        labels, condition: of these images.
        count: samples of the prior.
        seed: of what is drawn.
    """
    if isinstance(trained, JointLevels | JointDecoders):
        every = trained.stack.encode(shown)
        return torch.cat([shown, *(trained.stack.decode(z, number) for number, z in enumerate(every, start=1))])
    if isinstance(trained, RendererTraining | RenderedLevel):
        return torch.cat([shown, *_decoded_and_drawn(model, trained, shown)])
    level = trained.level if isinstance(trained, JointEncoder) else trained
    if isinstance(level, Level):
        below = model.stack.encode(shown, level.number - 1)
        decoded = level.decode(level.encode(below[-1] if below else shown))
        return torch.cat([shown, model.stack.decode(decoded.mode(), level.number - 1) if below else decoded.mean()])
    assert isinstance(trained, CodeModel | UnifiedCodeModel)
    if isinstance(trained, UnifiedCodeModel) or refines is None:
        prior, *lower = trained.segments if isinstance(trained, UnifiedCodeModel) else [trained]
        with ExitStack() as places:
            places.enter_context(_in_place(model, "prior", prior))
            for number, segment in zip(range(len(model.stack), 1, -1), lower, strict=False):
                places.enter_context(_in_place(model.refiners, str(number), segment))
            classes = torch.arange(count) % model.classes if model.classes else None
            given = model.condition_read(condition)
            if given is not None:
                given = given[torch.arange(count) % len(given)]
            return model.sample(count, classes, given, seed=seed, sampling=_sampling(model)).pixels
    with _in_place(model.refiners, str(refines), trained):
        codes = model.encode(shown)[refines - 1]
        about = model.labels_read(labels), model.condition_read(condition)
        varied = model.vary(codes, refines, *about, seed=seed, sampling=_sampling(model)).pixels
        return torch.cat([shown, varied])


def _decoded_and_drawn(
    model: HierarchicalModel, trained: RendererTraining | RenderedLevel, shown: Pixels
) -> tuple[Pixels, Pixels]:
    """The mean of level 1's decoder, and what the renderer makes of the same codes."""
    level, rendering = model.stack.level(1), trained
    if isinstance(trained, RenderedLevel):
        level, rendering = trained.level, trained.rendering
    assert isinstance(rendering, RendererTraining)
    codes = level.encode(shown)
    drawn = rendering.renderer(level.quantizer.unchecked_lookup(codes))
    return level.decode(codes).mean(), pixels_of(drawn, level.lower.size)


def _sampling(model: HierarchicalModel) -> SamplingSettings:
    """Codes are drawn; pixels are averaged, but drawn where a refiner or a window lets them see each other."""
    product = model.refiner(1) is None and model.stack.level(1).settings.decoder.family == "product"
    return SamplingSettings(mean=(product,))


@contextmanager
def _in_place(holder: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    """``module`` in the place of the holder's own one."""
    own = getattr(holder, name)
    setattr(holder, name, module)
    try:
        yield
    finally:
        setattr(holder, name, own)
