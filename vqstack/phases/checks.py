"""What training cannot do, refused before it begins."""

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType

from vqstack.config import RunConfig
from vqstack.errors import InputError

# What shards weights: averages, checkpoints and the frozen levels below need them whole.
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def check_trackers(names: tuple[str, ...]) -> None:
    """Every tracker must be one that is installed."""
    installed = [str(tracker.value) for tracker in get_available_trackers()]
    for name in names:
        if name not in installed:
            known = ", ".join(installed) or "none"
            raise InputError(f"trackers: {name} is not installed here (these are: {known}): install it or leave it out")


def check_processes(config: RunConfig, accelerator: Accelerator) -> None:
    """Training must be data parallel, and every batch split into equal parts for the micro-batches of each process."""
    if accelerator.distributed_type in SHARDED:
        raise InputError(
            f"training under {accelerator.distributed_type.value} is not possible yet: launch it data parallel, as "
            "recipes/accelerate/one_host.yaml does"
        )
    for name, settings in config.every_training.items():
        parts = settings.accumulate * accelerator.num_processes
        if settings.batch_size % parts:
            raise InputError(
                f"{name}.batch_size: {settings.batch_size} is not a multiple of accumulate times processes ({parts}): "
                "change one of them"
            )
