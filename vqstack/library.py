"""What a program calls: the settings of a recipe, training in one call, a trained model.

``import vqstack`` has these, and the classes that go with them, under their own names.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from numpy.typing import NDArray
from torch import Tensor

from vqstack.config import RunConfig, changed, read_recipe
from vqstack.errors import InputError
from vqstack.fit import DONE, Callback
from vqstack.images import check_paths, image_shape
from vqstack.in_memory import InMemory, with_images
from vqstack.model import HierarchicalModel
from vqstack.model_settings import ModelSettings
from vqstack.phases import Run, check_trackers
from vqstack.recipes import find_recipe
from vqstack.renderer import check_packages
from vqstack.report import attention_without_blocks, growing_maps, unplayed_games
from vqstack.run_folder import check_run_folder
from vqstack.terminal import warn

CACHE = "VQSTACK_CACHE"


def load(model: str | Path, device: str | torch.device = "cpu") -> HierarchicalModel:
    """The model of a finished run or a released model (its folder), or one of the hub, in eval mode.

    On the hub it is OWNER/NAME, or OWNER/NAME@REVISION: a branch, a tag or a commit.

    InputError where there is none, or where it is damaged.
    """
    return HierarchicalModel.from_pretrained(model, map_location=device)


def recipe(name: str | Path = "digits", **changes: Any) -> RunConfig:
    """The settings of a recipe: a name that ``vqstack recipes`` lists, or a YAML file; with changes to its fields.

    A list replaces that of the recipe. A mapping changes fields inside a field, and of a list every entry:
    ``recipe("mnist", train_levels={"steps": 100})`` trains every level for 100 steps. InputError for what no recipe may
    say.
    """
    config = read_recipe(find_recipe(str(name)))
    return changed(config, changes) if changes else config


def train(
    settings: RunConfig | str | Path = "digits",
    images: InMemory | None = None,
    labels: Sequence[int] | Sequence[str] | NDArray[Any] | Tensor | None = None,
    *,
    out: str | Path | None = None,
    condition: NDArray[Any] | Tensor | None = None,
    values: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> HierarchicalModel:
    """Train a model and return it in eval mode, on the device that it was trained on.

    Called again with the same ``out``, it goes on where it stopped. Seeds the generators of torch, numpy and Python.

    Args:
        settings: of the run, or the name or path of a recipe, see :func:`recipe`.
        images: in place of the recipe's data set: uint8 [n, h, w], [n, h, w, c] or [n, c, h, w]; a torch data set of
            such images or of pairs of image and label; a data set of ``datasets``, or several by the names of their
            splits. Splits that are missing are held out (``data.validation``, ``data.test``).
        labels: of an array the class of each image, a number from 0 on or a name.
        condition: floats that are given with each image, [n, v] or [n, m, v]; see ``data.condition``.
        out: folder of the run; the images lie beside it. None: nothing is kept but the model that is returned, not
            even in the cache.
        values: how many values a channel has, which then are 0 … values - 1; default: as in the settings.
        callbacks: told of steps, evaluations and the ends of phases, see :class:`vqstack.Callback`.

    Raises:
        InputError: settings and images do not fit each other, or the folder holds another run.
    """
    config, threads = settings if isinstance(settings, RunConfig) else recipe(settings), torch.get_num_threads()
    if images is None and any(given is not None for given in (labels, condition, values)):
        raise InputError("labels, condition and values are of images in memory: give images, or leave them out")
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        folder = Path(out) if out is not None else stack.enter_context(_nowhere(images is not None)) / "run"
        written = nullcontext()
        if images is not None:
            config, written = with_images(config, folder, images, labels, condition, values)  # type: ignore[assignment]
        with written:
            _, accelerator = prepare(config, folder)
            if accelerator.num_processes > 1 and out is None:
                raise InputError("out: several processes share the folder of the run: name one")
            run = stack.enter_context(closing(Run(config, folder, accelerator, callbacks=callbacks)))
        run.train_all()
        return load(folder / "model", accelerator.device)


@contextmanager
def _nowhere(own_cache: bool) -> Iterator[Path]:
    """A folder that is gone afterwards; with ``own_cache`` decoded images are kept inside it, and not in the cache."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as name:
        before = os.environ.get(CACHE)
        if own_cache:
            os.environ[CACHE] = str(Path(name) / "cache")
        try:
            yield Path(name)
        finally:
            if before is not None:
                os.environ[CACHE] = before
            elif own_cache:
                del os.environ[CACHE]


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
    if config.renderer is not None and not (folder / "phases" / "renderer" / DONE).exists():
        check_packages(config.renderer.perceptual)
    check_trackers(config.trackers)
    # Shards that lie in the memory of the host are reduced there.
    offloaded = {"backend": "cuda:nccl,cpu:gloo"} if config.cpu_offload and torch.cuda.is_available() else {}
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=list(config.trackers) or None,
            project_dir=folder,
            # Processes may wait for longer than the ten minutes of the default: for images to be read, for a picture.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1), **offloaded)],
        )
    except ValueError as error:
        raise InputError(f"mixed_precision {config.mixed_precision}: {error}: choose another") from error
    if accelerator.is_main_process:
        for problem in (*growing_maps(settings), *attention_without_blocks(settings), *unplayed_games(config)):
            warn(problem)
    return settings, accelerator
