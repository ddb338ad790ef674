"""The run that a command is about: its configuration and its images."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from vqstack.config import RunConfig
from vqstack.errors import InputError, listed, reason
from vqstack.hub import parsed
from vqstack.images import (
    ImageSettings,
    ImageSplit,
    Split,
    WholeSplit,
    identity,
    load_images,
    load_splits,
    mapped,
    numerals,
)
from vqstack.model import HierarchicalModel
from vqstack.model_settings import Geometry
from vqstack.paths import path_of
from vqstack.pretrained import CONFIG as ARTEFACT_CONFIG
from vqstack.pretrained import find_artefact, holds_artefact
from vqstack.reading import plain_file, reading
from vqstack.run_folder import CONFIG, changed_images, read_config, shown
from vqstack.shapes import Floats, Pixels, by_axis

logger = logging.getLogger(__name__)
AnySplit = TypeVar("AnySplit", ImageSplit, WholeSplit, ImageSplit | WholeSplit)


def config_of_run(folder: Path) -> RunConfig | None:
    """The configuration of a run, named by its folder or by its artefact; None for an artefact without its run."""
    run = run_of(folder)
    return None if run is None else read_config(run)


def run_of(folder: Path) -> Path | None:
    """The folder of a run, named by itself or by its artefact; None for an artefact without its run."""
    with reading(folder):
        of_artefact = folder.resolve().parent if folder.resolve().name == "model" else folder
        return next((place for place in (folder, of_artefact) if (place / CONFIG).is_file()), None)


def data_of_run(folder: Path) -> ImageSettings:
    """The images that a run was trained on; of a model without its run what it knows of them, and no files."""
    config = config_of_run(folder)
    if config is not None:
        return config.data
    model, _ = HierarchicalModel.read_settings(find_artefact(folder) / ARTEFACT_CONFIG)
    channels, *size = model.image_shape
    geometry = (model.geometry or Geometry(size=tuple(size))).model_dump()
    if geometry["rate"] is not None:
        geometry["source"] = "audiofolder" if len(size) == 1 else "videofolder"
    elif len(size) != 2 or channels not in (1, 3) or model.values > 256:
        geometry["source"] = "volumefolder"
    return ImageSettings().model_copy(update={**geometry, "channels": channels, "values": model.values})


def read_images(run: str | Path, files: Sequence[str | Path]) -> Pixels:
    r"""Files as the model of a run, or a released one, takes them: [n, c, \*map], their sizes fitted as in training."""
    settings, _ = HierarchicalModel.read_settings(find_artefact(Path(run)) / ARTEFACT_CONFIG)
    channels, *size = settings.image_shape
    changes = {"size": tuple(size), "channels": channels, "values": settings.values}
    return load_images(list(map(Path, files)), data_of_run(Path(run)).model_copy(update=changes))


def read_condition(model: HierarchicalModel, path: Path) -> Floats:
    """The floats of a .npy file that the model is given, [n, …]: a row for each image, or one for all."""
    assert model.condition is not None
    try:
        content = np.load(plain_file(path), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--condition: {path} cannot be read ({reason(error)}): name a .npy file of numpy") from error
    rows = content[None] if np.shape(content) == model.condition.shape else content
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiu" or rows.shape[1:] != model.condition.shape:
        found = f"{content.dtype} {content.shape}" if isinstance(content, np.ndarray) else "an archive"
        raise InputError(
            f"--condition: {path} holds {found}: give {by_axis(model.condition.shape)} floats "
            f"({model.condition.name}) for all images, or a row of them for each"
        )
    with np.errstate(over="ignore"):
        condition = torch.from_numpy(rows.astype(np.float32))
    finite = condition.flatten(1).isfinite().all(1)
    if not finite.all():
        raise InputError(
            f"--condition: {path}, row {int(finite.int().argmin())} holds a number that is not finite, or too large "
            "for 32 bits: correct it"
        )
    model.check_condition(condition, None)
    return condition


def given_condition(model: HierarchicalModel, path: Path | None, otherwise: str = "") -> Floats | None:
    """What ``--condition`` names, where the model is given floats; InputError where one is there without the other.

    ``otherwise`` is what may be given in its place.
    """
    if path is not None and model.condition is None:
        raise InputError("--condition: this model is conditional on no floats: leave it out")
    if path is None and model.condition is not None:
        shape = by_axis(model.condition.shape)
        raise InputError(
            f"--condition: missing, and this model is given {model.condition.name}: name a .npy of {shape}{otherwise}"
        )
    return None if path is None else read_condition(model, path)


def split_of_run(run: str | Path, name: Split = "test") -> ImageSplit:
    """Images of a run: a split of what it was trained on, its labels those that the model gives their classes."""
    settings = config_of_run(Path(run))
    if settings is None:
        raise InputError(f"{run} is a model without its run, which names the images: read files, or draw samples")
    model: HierarchicalModel = HierarchicalModel.from_pretrained(Path(run))
    return in_classes_of(model, load_splits(settings.data, [name]))[name]


def _place(argument: str) -> Path:
    try:
        return path_of(argument)
    except InputError:  # no path at all, or one that is refused where it is parsed
        return Path(argument)


def named_run(arguments: list[str]) -> tuple[Path, ImageSettings] | None:
    """The run that a command line names, and its images, the defaults of what else the line says; None for none.

    A model without its run does not say where its images are: then the line has to, or InputError.
    """
    run = next((place for place in map(_place, arguments) if holds_artefact(place)), None)
    asked = any(argument.startswith(("--help", "-h")) for argument in arguments)
    if run is None and arguments and not asked and parsed(arguments[0]) is not None:
        run = Path(arguments[0])  # of the hub; later words of that form are folders to be made
        find_artefact(run)
    if run is None:
        return None
    named = asked or any(argument.startswith("--data.source") for argument in arguments)
    if not named and config_of_run(run) is None:
        raise InputError(f"{run} is a model without its run, which names the images: name them with --data.source")
    return run, data_of_run(run)


def warn_of_changes(folder: Path, settings: ImageSettings, splits: Mapping[str, ImageSplit | WholeSplit]) -> None:
    """Say in one line where images that a command takes from a run are not those that the run keeps.

    Of a stream that is read to its end the files alone are compared, as the run kept but a part of the images.
    """
    run, kept = run_of(folder), data_of_run(folder)
    if run is None or settings.model_copy(update={"limit": kept.limit}) != kept:
        return  # other images were asked for
    whole = settings.limit == kept.limit
    today = identity(settings, {name: s for name, s in splits.items() if isinstance(s, ImageSplit) and whole})
    try:
        changes = changed_images(run, today)
    except InputError as error:  # damaged, which is no reason to score nothing
        logger.warning("%s", error)
        return
    if found := shown(change for change in changes if change[0].split(".")[1] in today):
        logger.warning("the images are not those that %s began with: %s", run, found)


def check_images(
    splits: Mapping[str, ImageSplit | WholeSplit], settings: ImageSettings, model: HierarchicalModel
) -> None:
    """The images must have the shape and the values that the model was trained on."""
    for name, split in splits.items():
        shape = tuple(split.source["shape"])
        if shape != model.stack.shape or settings.values != model.stack.values:
            raise InputError(
                f"{name}: images of {shape} with {settings.values} values do not fit the model, which wants "
                f"{model.stack.shape} with {model.stack.values}: set --data.size, --data.channels and --data.values, "
                "or take images at their own size, one by one, with vqstack.Tokenizer"
            )


def check_condition(splits: Mapping[str, ImageSplit], model: HierarchicalModel) -> None:
    """Each image must be given the floats that the model reads, and none where it reads none."""
    for name, split in splits.items():
        given, wanted = split.condition_shape, model.condition
        if wanted is None and given:
            raise InputError(f"{name}: data.condition is given, and the model reads no floats: leave it out")
        if wanted is not None and given != wanted.shape:
            found = f"{by_axis(given)} floats" if given else "no floats"
            raise InputError(
                f"{name}: {found} an image, and the model is given {wanted.name}, {by_axis(wanted.shape)} floats: name "
                "their column with --data.condition"
            )


def in_classes_of(model: HierarchicalModel, splits: Mapping[str, AnySplit]) -> dict[str, AnySplit]:
    """The splits with the labels that the model gives their classes, by name; InputError where it lacks one.

    Older models know how many classes there are and not their names: then these must be as many, and a warning says
    what is taken for granted. A model that reads no labels takes them as they are.
    """
    return {name: _renumbered(model, name, split) for name, split in splits.items()}


def _renumbered(model: HierarchicalModel, name: str, split: AnySplit) -> AnySplit:
    known, names = model.settings.class_names, split.class_names
    if not model.classes or not split.labelled or names == list(known):
        return split
    if known:
        return split.renumbered(mapped(names, known, name, "the model"), known)
    if names != numerals(len(names)):
        if len(names) != model.classes:
            raise InputError(
                f"{name}: its classes are {listed(names)}, and the model knows no names for its {model.classes}: give "
                "the command of its run again, which adds them, or name as many classes with data.class_names"
            )
        said = "%s: this older model knows no names of classes; its 0 … %d are taken for %s"
        logger.warning(said, name, len(names) - 1, listed(names))
    return split
