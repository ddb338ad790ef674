"""What a run takes from another one: levels or encoders that stay as they are, or weights to start from.

Levels are taken frozen (:class:`Reused`) to compare what lies above them on the same codes, encoders alone to train new
decoders for them.
Weights to start from (:class:`Start`) are trained as those of any other run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vqstack.codes import fingerprint
from vqstack.config import RunConfig, without_unused
from vqstack.disk import make_folder
from vqstack.errors import InputError, listed
from vqstack.fit import DONE, load_outcome, write_outcome
from vqstack.images import numerals
from vqstack.joint import JointLevels
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.pretrained import holds_artefact
from vqstack.settings import differences
from vqstack.stack import Stack, StackSettings

ENCODERS = "encoders"  # the phase that taken encoders stand for


class Reused:
    """Levels of a finished run or released model, for a run whose levels have the same settings.

    Args:
        path: folder of the run or of the model. As many of the first levels are taken as both have.
        settings: of the model that takes them; InputError, naming the field, where they do not fit.
        encoders: take encoders and codebooks alone, of all levels: decoders and the pixels' likelihood may differ.
        kept: count of levels that are taken, in place of as many as both have.
    """

    def __init__(self, path: Path, settings: ModelSettings, encoders: bool = False, kept: int | None = None) -> None:
        self.path, self.encoders = path, encoders
        asked = "encoders_from" if encoders else "levels_from"
        source: HierarchicalModel = HierarchicalModel.from_pretrained(path)
        self.stack, theirs = source.stack, without_unused(source.settings)
        settings = without_unused(settings)
        ours = settings.stack
        self.count = min(len(ours.levels), len(source.stack))
        if kept is not None and kept > self.count:
            raise InputError(f"levels_kept: {kept} levels of {path}, and {self.count} can be taken: choose fewer")
        self.count = kept or self.count
        stack = _but_for_decoders(theirs.stack, ours) if encoders else theirs.stack
        shapes, values = (settings.image_shape, theirs.image_shape), (settings.values, theirs.values)
        found = [*differences(self._compared(ours), self._compared(stack))]
        found += [(name, *two) for name, two in (("image_shape", shapes), ("data.values", values)) if two[0] != two[1]]
        for field, here, there in found[:1]:
            level = field.split(".")[1] if field.startswith("levels.") and not encoders else "0"
            fewer = f", set levels_kept to {level}" if level != "0" else ""
            raise InputError(
                f"{asked} {path}: {field} is {there} there and {here} here: make them equal{fewer}, or leave {asked} "
                "out"
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

    def _compared(self, stack: StackSettings) -> dict[str, Any]:
        return stack.model_copy(update={"levels": stack.levels[: self.count]}).model_dump(mode="json")

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
            return Reused(path, settings, first == ENCODERS, config.levels_kept)
    return None


START = "start"  # folder of a run
PARTS = ("levels", "refiners", "prior", "renderer")
LABELS = "label_embedding.weight"  # of a part that knows classes: a row each


class Start:
    """The weights that a run starts from, those of other models where the settings name one (``start_from``).

    InputError, naming what does not fit, where the weights of a part are not of the shapes that are wanted. Rows of
    classes are matched by name; new classes start as they would without, and so do levels and refiners that the other
    model lacks.

    Args:
        model: of the run, new; receives the weights.
        sources: part (levels, refiners, prior, renderer, or all) -> folder of a finished run or a released model.

    Attributes:
        about: what to keep of it: level, refiner, prior, renderer -> path and fingerprint of the model it starts from.
        lines: what to tell.
    """

    def __init__(self, model: HierarchicalModel, sources: Mapping[Any, Path]) -> None:
        self.model, self.about, self.lines = model, dict[str, Any](), list[str]()
        loaded = {path: HierarchicalModel.from_pretrained(path) for path in set(sources.values())}
        names = model.settings.class_names or numerals(model.settings.classes)
        state, taken = model.state_dict(), dict[str, Tensor]()
        for part in PARTS:
            path = sources.get(part, sources.get("all"))
            if path is None:
                continue
            theirs, started = loaded[path], list[str]()
            for name, prefix in _units(model, part).items():
                if name in _units(theirs, part):
                    taken |= self._fitting(name, prefix, state, theirs, path, list(names))
                    started.append(name)
                    self.about[name] = {"path": str(path), "model": fingerprint(theirs.state_dict())}
                else:
                    self.lines.append(f"{name} begins anew: {path} has none")
            if not started and part in sources:
                raise InputError(f"start_from {part}: {path} has none of what there is here: leave it out")
            if started:
                self.lines.append(f"{', '.join(started)}: started from {path}")
        model.load_state_dict({**state, **taken})

    def _fitting(
        self, name: str, prefix: str, state: dict[str, Tensor], source: HierarchicalModel, path: Path, names: list[str]
    ) -> dict[str, Tensor]:
        """The source's weights of one part, each of the shape that it has here."""
        ours, theirs = (
            {n: value for n, value in s.items() if n.startswith(prefix)} for s in (state, source.state_dict())
        )
        labels = prefix + LABELS
        before, now = theirs.pop(labels, None), ours.pop(labels, None)
        shapes = [{n: tuple(value.shape) for n, value in s.items()} for s in (theirs, ours)]
        if different := [n for n in sorted({*theirs, *ours}) if shapes[0].get(n) != shapes[1].get(n)]:
            there, here = (s.get(different[0], "missing") for s in shapes)
            raise InputError(
                f"start_from {path}: {different[0]} is {there} there and {here} here: make the settings of {name} "
                f"equal, or name the parts that can start from it ({', '.join(PARTS)})"
            )
        if name.startswith("level"):
            kinds = [m.stack.level(int(name.split("-")[1])).settings.quantizer.kind for m in (source, self.model)]
            if kinds[0] != kinds[1]:
                raise InputError(f"start_from {path}: the quantizer of {name} is {kinds[0]} there and {kinds[1]} here")
        if now is not None:
            known = list(source.settings.class_names or numerals(source.settings.classes)) if before is not None else []
            kept = [n for n in names if n in known]
            rows = now.clone()
            if before is not None and kept:
                rows[[names.index(n) for n in kept]] = before[[known.index(n) for n in kept]].to(rows)
            theirs[labels] = rows
            for these, what in ((set(names) - set(kept), "begin anew"), (set(known) - set(kept), "are not kept")):
                if these:
                    self.lines.append(f"{name}: the classes {listed(sorted(these))} {what}")
        elif before is not None:
            self.lines.append(f"{name}: its classes are not kept")
        return theirs

    def write(self, folder: Path) -> None:
        """Leave the weights in a run's folder; from then on the run no longer needs where they came from."""
        make_folder(folder / START)
        write_outcome(folder / START, self.model.state_dict(), self.about)


def _units(model: HierarchicalModel, part: str) -> dict[str, str]:
    """What of a part can start by itself, by name -> how the names of its weights begin."""
    if part == "prior":
        return {"prior": "prior."}
    if part == "renderer":
        return {} if model.renderer is None else {"renderer": "renderer."}
    if part == "levels":
        return {f"level-{n}": f"stack.levels.{n - 1}." for n in range(1, len(model.stack) + 1)}
    return {f"refiner-{n}": f"refiners.{n}." for n in map(int, model.refiners)}


def start_of(config: RunConfig, model: HierarchicalModel, folder: Path) -> Start | None:
    """What a run still has to take to start from; None where it names nothing, or keeps it already.

    InputError where the run has begun without.
    """
    if not config.start_from or (folder / START / DONE).exists():
        return None
    if any((folder / "phases").glob("*")):
        raise InputError(
            f"{folder} has begun, and {START}/ with what start_from gave it is not there: put it back, leave "
            "start_from out, or choose another --out"
        )
    return Start(model, config.start_from)


def load_start(model: HierarchicalModel, folder: Path) -> list[str]:
    """Give ``model`` the weights that its run keeps to start from; the names of the parts that these are."""
    if not (folder / START / DONE).exists():
        return []
    return [name for name in load_outcome(folder / START, model) if name != "sha256"]


def check_sources(config: RunConfig, settings: ModelSettings, folder: Path) -> list[str]:
    """For a plan: InputError for what a run could not take from the models that it names, which must be there.

    What is to be taken frozen may still have to be trained: then a line says so.
    """
    if config.start_from:
        start_of(config, HierarchicalModel(settings), folder)
    path = config.levels_from or config.encoders_from
    if path is None or holds_artefact(path):
        reused_levels(config, settings, folder / "phases")
        return []
    return [f"frozen   of {path}, which is no folder of a trained model now"]
