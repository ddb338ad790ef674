"""What a program calls: the settings of a recipe, training in one call, a trained model.

``import vqstack`` has these, and the classes that go with them, under their own names.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from vqstack.checkpoint import make_folder, remove, write_atomically
from vqstack.config import RunConfig, changed, read_recipe
from vqstack.errors import InputError, explain
from vqstack.images import ImageSettings, check_paths, image_shape
from vqstack.model import HierarchicalModel, ModelSettings
from vqstack.phases import Run, check_trackers
from vqstack.recipes import find_recipe
from vqstack.report import growing_maps
from vqstack.run_folder import check_run_folder
from vqstack.terminal import warn


def load(model: str | Path, device: str | torch.device = "cpu") -> HierarchicalModel:
    """The model of a finished run or a released model (its folder), or one of the hub (OWNER/NAME), in eval mode.

    InputError where there is none, or where it is damaged.
    """
    return HierarchicalModel.from_pretrained(model, map_location=device)


def recipe(name: str | Path = "digits", **changes: Any) -> RunConfig:
    """The settings of a recipe: a name that ``vqstack recipes`` lists, or a YAML file; with changes to its fields.

    A mapping changes fields inside a field, and of a list every entry: ``recipe("mnist", train_levels={"steps": 100})``
    trains every level for 100 steps. InputError for what no recipe may say.
    """
    config = read_recipe(find_recipe(str(name)))
    return changed(config, changes) if changes else config


def train(
    settings: RunConfig | str | Path = "digits",
    images: NDArray[Any] | Tensor | None = None,
    labels: Sequence[int] | Sequence[str] | NDArray[Any] | Tensor | None = None,
    *,
    out: str | Path | None = None,
    condition: NDArray[Any] | Tensor | None = None,
    values: int | None = None,
) -> HierarchicalModel:
    """Train a model and return it in eval mode, on the device that it was trained on.

    Called again with the same ``out``, it goes on where it stopped. Seeds the generators of torch, numpy and Python.

    Args:
        settings: of the run, or the name or path of a recipe, see :func:`recipe`.
        images: uint8 [n, h, w], [n, h, w, c] or [n, c, h, w], in place of the recipe's data set. Validation and test
            images are held out of them (``data.validation``, ``data.test``).
        labels: the class of each image, a number from 0 on or a name.
        condition: floats that are given with each image, [n, v] or [n, m, v]; see ``data.condition``.
        out: folder of the run; the images lie beside it. None: nothing is kept but the model that is returned.
        values: how many values a channel has, which then are 0 … values - 1; default: as in the settings.

    Raises:
        InputError: settings and images do not fit each other, or the folder holds another run.
    """
    config, threads = settings if isinstance(settings, RunConfig) else recipe(settings), torch.get_num_threads()
    if images is None and any(given is not None for given in (labels, condition, values)):
        raise InputError("labels, condition and values are of images in memory: give images, or leave them out")
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        folder = Path(out) if out is not None else Path(stack.enter_context(TemporaryDirectory())) / "run"
        written: AbstractContextManager[None] = nullcontext()
        if images is not None:
            config, written = _with_images(config, folder, np.asarray(images), labels, condition, values)
        with written:
            _, accelerator = prepare(config, folder)
            if accelerator.num_processes > 1 and out is None:
                raise InputError("out: several processes share the folder of the run: name one")
            run = stack.enter_context(closing(Run(config, folder, accelerator)))
        run.train_all()
        return load(folder / "model", accelerator.device)


def _with_images(
    config: RunConfig, folder: Path, images: NDArray[Any], labels: Any, condition: Any, values: int | None
) -> tuple[RunConfig, AbstractContextManager[None]]:
    """The settings with these images as their data set, and what writes that beside the folder of the run."""
    arrays = {"images": images, "labels": labels, "condition": condition}
    arrays = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    for name, array in arrays.items():
        if len(array) != len(images):
            raise InputError(f"{name}: {len(array)} for {len(images)} images: give one for each")
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # names that are no options of it
    # Named by what it holds: a run in the folder that had other images is refused, and keeps its own.
    name = f"{folder.name}-images-{hashlib.sha256(content.getbuffer()).hexdigest()[:12]}.npz"
    path = folder.absolute().parent / name
    colours = 3 if images.ndim == 4 and 3 in (images.shape[1], images.shape[3]) else 1
    # The digits count their held-out images; what else the settings say of another source does not fit this one.
    kept = {"limit", "seed", "resident"} | (set() if config.data.source == "digits" else {"validation", "test"})
    data: dict[str, Any] = {"source": "array", "files": {"train": str(path)}, "channels": colours}
    data["condition"] = "condition" if condition is not None else None
    data |= {"values": values or config.data.values} | config.data.model_dump(include=kept)
    try:
        given = ImageSettings.model_validate(data)
    except ValidationError as error:
        raise InputError(explain(error, "data")) from error
    config = changed(config, {"data": given})
    check_run_folder(folder, config)
    return config, _written(path, content.getbuffer())


@contextmanager
def _written(path: Path, content: memoryview) -> Iterator[None]:
    """A file that is there inside, and stays unless what is done with it is refused."""
    made = not path.exists()
    if made:
        make_folder(path.parent)
        write_atomically(path, lambda aside: aside.write_bytes(content))
    try:
        yield
    except InputError:
        if made:
            remove(path)
        raise


def prepare(config: RunConfig, folder: Path, override: bool = False) -> tuple[ModelSettings, Accelerator]:
    """The checks before a training that read no image but the first, and the processes and devices that it runs on.

    The settings of the model are those for images without classes, which are counted later.
    """
    check_paths(config.data)
    shape = image_shape(config.data)
    config.check_shapes(*shape[1:])
    settings = config.model_settings(shape, 1)
    settings.draws()  # wrong settings of sampling are refused now, not after training
    check_run_folder(folder, config, override)
    check_trackers(config.trackers)
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=list(config.trackers) or None,
            project_dir=folder,
            # Processes may wait for longer than the ten minutes of the default: for images to be read, for a picture.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
        )
    except ValueError as error:
        raise InputError(f"mixed_precision {config.mixed_precision}: {error}: choose another") from error
    if accelerator.is_main_process:
        for problem in growing_maps(settings):
            warn(problem)
    return settings, accelerator
