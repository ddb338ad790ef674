"""The run that a command is about: its configuration and its images."""

from collections.abc import Mapping
from pathlib import Path

from vqstack.config import RunConfig
from vqstack.errors import InputError
from vqstack.images import ImageSettings, ImageSplit, WholeSplit
from vqstack.model import HierarchicalModel
from vqstack.paths import path_of
from vqstack.pretrained import holds_artefact
from vqstack.reading import reading
from vqstack.run_folder import CONFIG, read_config


def config_of_run(folder: Path) -> RunConfig | None:
    """The configuration of a run, named by its folder or by its artefact; None for an artefact without its run."""
    with reading(folder):
        of_artefact = folder.resolve().parent if folder.resolve().name == "model" else folder
        run = next((place for place in (folder, of_artefact) if (place / CONFIG).is_file()), None)
    return None if run is None else read_config(run)


def data_of_run(folder: Path) -> ImageSettings:
    """The images that a run was trained on; the defaults where the folder is an artefact without its run."""
    config = config_of_run(folder)
    return ImageSettings() if config is None else config.data


def _place(argument: str) -> Path:
    try:
        return path_of(argument)
    except InputError:  # no path at all, or one that is refused where it is parsed
        return Path(argument)


def named_run(arguments: list[str]) -> tuple[Path, ImageSettings] | None:
    """The run that a command line names, and its images, the defaults of what else the line says; None for none.

    A model without its run says nothing of its images: then the line has to, or InputError.
    """
    run = next((place for place in map(_place, arguments) if holds_artefact(place)), None)
    config = None if run is None else config_of_run(run)
    if run is not None and config is not None:
        return run, config.data
    if run is not None and not any(argument.startswith(("--data.", "--help", "-h")) for argument in arguments):
        raise InputError(f"{run} is a model without its run, which names the images: name them with --data.source")
    return None


def check_images(
    splits: Mapping[str, ImageSplit | WholeSplit], settings: ImageSettings, model: HierarchicalModel
) -> None:
    """The images must have the shape and the values that the model was trained on."""
    for name, split in splits.items():
        shape = tuple(split.source["shape"])
        if shape != model.stack.shape or settings.values != model.stack.values:
            raise InputError(
                f"{name}: images of {shape} with {settings.values} values do not fit the model, which wants "
                f"{model.stack.shape} with {model.stack.values}: set --data.size, --data.channels and --data.values"
            )
