"""The codes of the training images, made once for the phases that are trained on them."""

from typing import Any

import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from vqstack.codes import MapCache
from vqstack.disk import on_main
from vqstack.sources import PixelSource
from vqstack.stack import Stack
from vqstack.terminal import Progress


@torch.no_grad()
def encode_once(
    cache: MapCache,
    images: PixelSource,
    stack: Stack,
    level: int,
    accelerator: Accelerator,
    batch_size: int,
) -> NDArray[Any]:
    """The maps of ``cache``: those that are stored, else all processes together encode each view of each image once.

    Batches are the same for any number of processes, which take them in turn; none holds more than one.

    Args:
        cache: says which level, how many views, and where.
        images: as they are (one view), or augmented; a view is what an epoch of that number would see.
        stack: encodes; in eval mode.
        level: whose maps.
        accelerator: the processes.
        batch_size: images at a time, each process.
    """
    stored = cache.load()
    accelerator.wait_for_everyone()  # all have looked before one of them begins
    if stored is not None:
        return stored
    on_main(accelerator, cache.begin)
    views, count = cache.shape[:2]
    parts = [(view, start) for view in range(views) for start in range(0, count, batch_size)]
    mine = parts[accelerator.process_index :: accelerator.num_processes]
    quiet = not accelerator.is_main_process
    for view, start in Progress(mine, desc=f"codes of level {level}", leave=False, disable=quiet):
        indices = torch.arange(start, min(start + batch_size, count))
        (pixels,) = images.batch(indices, torch.full_like(indices, view) if images.augmentation.active else None)
        cache.write(view, start, stack.encode(pixels, level)[-1])
    accelerator.wait_for_everyone()
    on_main(accelerator, cache.finish)
    stored = cache.load()
    assert stored is not None
    return stored
