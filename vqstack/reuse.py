"""What is taken frozen from another run: levels, to compare what lies above, or encoders, to train new decoders."""

from pathlib import Path

from pydantic import BaseModel
from torch import Tensor

from vqstack.checkpoint import make_folder
from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.fit import DONE, write_outcome
from vqstack.joint import JointLevels
from vqstack.model import HierarchicalModel, ModelSettings
from vqstack.pretrained import find_artefact
from vqstack.stack import Stack, StackSettings

ENCODERS = "encoders"  # the phase that taken encoders stand for


def first_difference(ours: object, theirs: object, name: str = "") -> tuple[str, object, object] | None:
    """Name of the first field in which two settings differ, and its two values; None where they are equal."""
    if isinstance(ours, BaseModel) and type(ours) is type(theirs):
        pairs = [(field, getattr(ours, field), getattr(theirs, field)) for field in type(ours).model_fields]
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and any(isinstance(x, BaseModel) for x in ours):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=False))]
    else:
        return None if ours == theirs else (name, ours, theirs)
    found = (first_difference(a, b, f"{name}.{field}".lstrip(".")) for field, a, b in pairs)
    return next((difference for difference in found if difference), None)


class Reused:
    """Levels of a finished run or released model, for a run whose levels have the same settings.

    Args:
        path: folder of the run or of the model. As many of the first levels are taken as both have.
        settings: of the model that takes them; InputError, naming the field, where they do not fit.
        encoders: take encoders and codebooks alone, of all levels: decoders and the pixels' likelihood may differ.
    """

    def __init__(self, path: Path, settings: ModelSettings, encoders: bool = False) -> None:
        self.path, self.encoders = path, encoders
        asked = "encoders_from" if encoders else "levels_from"
        source: HierarchicalModel = HierarchicalModel.from_pretrained(find_artefact(path))
        self.stack, ours, theirs = source.stack, settings.stack, source.settings
        self.count = min(len(ours.levels), len(source.stack))
        compared = {
            "": (ours, _but_for_decoders(theirs.stack, ours) if encoders else theirs.stack),
            "image_shape": (settings.image_shape, theirs.image_shape),
            "data.values": (settings.values, theirs.values),
        }
        for name, (a, b) in compared.items():
            difference = first_difference(a, b, name)
            if difference:
                field, here, there = difference
                raise InputError(
                    f"{asked} {path}: {field} is {there} there and {here} here: make them equal, or leave {asked} out"
                )
        if encoders and self.count < len(ours.levels):
            raise InputError(
                f"{asked} {path}: it has {self.count} levels, and {len(ours.levels)} are asked for: train the decoders "
                "of those first, and take that run with levels_from"
            )
        trained = [r.level for r in settings.refiners if r.joint_encoder and r.level <= self.count]
        if trained:
            raise InputError(
                f"{asked} {path}: level {trained[0]} is taken frozen, but joint_encoder trains it: leave one "
                "of them out"
            )

    def write(self, phases: Path, stack: Stack) -> None:
        """Leave what is taken in a run's ``phases/`` as if it had been trained there, level 1 last.

        From then on the run no longer needs the folder that it came from.

        Args:
            phases: folder of all phases.
            stack: of the run; its decoders are what theirs start from where encoders are taken alone.
        """
        outcomes: dict[str, dict[str, Tensor]]
        if self.encoders:
            taken = {f"stack.{name}": value for name, value in self.stack.encoder_state().items()}
            start = JointLevels(stack).state_dict()
            outcomes = {ENCODERS: {name: taken.get(name, value) for name, value in start.items()}}
        else:
            outcomes = {f"level-{n}": self.stack.level(n).state_dict() for n in range(self.count, 0, -1)}
        for name, state in outcomes.items():
            make_folder(phases / name)
            write_outcome(phases / name, state, {"taken_from": str(self.path)})


def _but_for_decoders(theirs: StackSettings, ours: StackSettings) -> StackSettings:
    """Their settings with our decoders and likelihood of pixels, on which no code depends."""
    levels = tuple(
        there.model_copy(update={name: getattr(here, name) for name in ("decoder", "decoder_blocks", "dropout")})
        for there, here in zip(theirs.levels, ours.levels, strict=False)
    )
    return theirs.model_copy(update={"levels": levels, "pixels": ours.pixels})


def reused_levels(config: RunConfig, settings: ModelSettings, phases: Path) -> Reused | None:
    """What a run still has to take from another one; None where it takes nothing, or has it already."""
    for path, first in ((config.levels_from, "level-1"), (config.encoders_from, ENCODERS)):
        if path is not None and not (phases / first / DONE).exists():
            return Reused(path, settings, encoders=first == ENCODERS)
    return None
