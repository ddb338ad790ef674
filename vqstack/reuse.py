"""Levels taken frozen from another run, so that runs which differ above them can be compared on the same codes."""

from pathlib import Path

from pydantic import BaseModel

from vqstack.checkpoint import make_folder
from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.fit import write_outcome
from vqstack.model import HierarchicalModel, ModelSettings
from vqstack.pretrained import find_artefact


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
    """The first levels of a finished run or released model, for a run whose first levels have the same settings.

    Args:
        path: folder of the run or of the model. As many levels are taken as both have.
        settings: of the model that takes them; InputError, naming the field, where they do not fit.
    """

    def __init__(self, path: Path, settings: ModelSettings) -> None:
        self.path = path
        source: HierarchicalModel = HierarchicalModel.from_pretrained(find_artefact(path))
        self.count = min(len(settings.stack.levels), len(source.stack))
        theirs = source.settings
        compared = {
            "": (settings.stack, theirs.stack),
            "image_shape": (settings.image_shape, theirs.image_shape),
            "data.values": (settings.values, theirs.values),
        }
        for name, (a, b) in compared.items():
            difference = first_difference(a, b, name)
            if difference:
                field, here, there = difference
                raise InputError(
                    f"levels_from {path}: {field} is {there} there and {here} here: make them equal, or leave "
                    "levels_from out"
                )
        trained = [r.level for r in settings.refiners if r.joint_encoder and r.level <= self.count]
        if trained:
            raise InputError(
                f"levels_from {path}: level {trained[0]} is taken frozen, but joint_encoder trains it: leave one "
                "of them out"
            )
        self.states = {number: source.stack.level(number).state_dict() for number in range(1, self.count + 1)}

    def write(self, phases: Path) -> None:
        """Leave the levels in a run's ``phases/`` as if they had been trained there, level 1 last.

        From then on the run no longer needs the folder they came from.
        """
        for number, state in reversed(self.states.items()):
            folder = phases / f"level-{number}"
            make_folder(folder)
            write_outcome(folder, state, {"taken_from": str(self.path)})


def reused_levels(config: RunConfig, settings: ModelSettings, phases: Path) -> Reused | None:
    """The levels that a run still has to take from another one; None where it takes none, or has them already."""
    if config.levels_from is None or (phases / "level-1" / "DONE").exists():
        return None
    return Reused(config.levels_from, settings)
