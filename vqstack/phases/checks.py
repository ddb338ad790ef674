"""What training cannot do, refused before it begins."""

from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType
from torch import nn

from vqstack.config import RunConfig
from vqstack.config.unused import unused
from vqstack.errors import InputError, listed
from vqstack.fit import Sharding, shapes_left, sharding_of
from vqstack.run_folder import Images, read_images

# Programs that shard weights in ways of their own; averages and checkpoints know FSDP 2 alone.
UNKNOWN = (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def check_trackers(names: tuple[str, ...]) -> None:
    """Every tracker must be one that is installed."""
    installed = [str(tracker.value) for tracker in get_available_trackers()]
    for name in names:
        if name not in installed:
            known = ", ".join(installed) or "none"
            raise InputError(f"trackers: {name} is not installed here (these are: {known}): install it or leave it out")


def check_processes(config: RunConfig, accelerator: Accelerator, processes: int | None = None) -> None:
    """Processes must share batches, or weights too by FSDP 2, and every batch must split into equal parts for the
    micro-batches of each process: of those at hand, or of so many."""
    if accelerator.distributed_type in UNKNOWN:
        raise InputError(
            f"training under {accelerator.distributed_type.value} is not possible: launch it data parallel, as "
            "recipes/accelerate/one_host.yaml does, or in shards, as recipes/accelerate/fsdp.yaml does"
        )
    for name, settings in config.every_training.items():
        if any(f"{name}.".startswith(f"{idle}.") for idle in unused(config)):
            continue
        parts = settings.accumulate * (processes or accelerator.num_processes)
        if settings.batch_size % parts:
            raise InputError(
                f"{name}.batch_size: {settings.batch_size} is not a multiple of accumulate times processes ({parts}): "
                "change one of them"
            )


def sharding_for(config: RunConfig, accelerator: Accelerator) -> Sharding | None:
    """How the run shares its weights among the processes; InputError where its other settings do not allow it."""
    sharding = sharding_of(accelerator, config.sharded, config.cpu_offload)
    if sharding is not None and config.channels_last:
        raise InputError("channels_last is not possible with weights that are cut along their first axis: leave it out")
    return sharding


def check_shapes_left(phases: Path, modules: Mapping[str, nn.Module], changed: str) -> None:
    """The weights that phases have left must fit what they would now be loaded into.

    Args:
        phases: folder of all phases.
        modules: what each phase trains, by its name.
        changed: the settings that differ, for the line that refuses them.
    """
    for phase, module in modules.items():
        left = shapes_left(phases / phase)
        wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        if left and left != wanted:
            name = next(name for name in (*wanted, *left) if wanted.get(name) != left.get(name))
            raise InputError(
                f"{phases / phase} holds weights of other settings ({name} is {left.get(name, 'missing')} there and "
                f"{wanted.get(name, 'missing')} here; changed: {changed}): give those that it was trained with, or "
                "choose another --out"
            )


def check_classes_left(folder: Path, modules: Mapping[str, nn.Module], images: Images) -> None:
    """Where phases have left weights that know classes, the classes must be the same, in the same order.

    Args:
        folder: of the run.
        modules: what each phase trains, by its name.
        images: those of today, as :func:`vqstack.images.identity` describes them.
    """
    try:
        before = read_images(folder)
    except InputError:
        return  # damaged: nothing is known of them, which the override allows
    old, new = (list((of or images)["train"].get("classes", {})) for of in (before, images))
    if old == new:
        return
    for phase, module in modules.items():
        if getattr(module, "classes", 0) and shapes_left(folder / "phases" / phase):
            raise InputError(
                f"{folder / 'phases' / phase} was trained on the classes {listed(old)}, the images have {listed(new)}: "
                "put back the images that it began with, or choose another --out"
            )
