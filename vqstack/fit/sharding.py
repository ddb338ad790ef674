"""Training in shards: each process holds its part of weights, gradients, moments and average (FSDP 2).

A process gathers the weights of a block when it runs the block, and gives them back afterwards (Zhao et al. 2023).
Buffers, such as codebooks, are whole in every process. What stands here also takes modules that are not sharded, and
leaves them as they are; so the loop need not ask.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vqstack.errors import InputError
from vqstack.fit.blocks import blocks
from vqstack.shards import mapped


class Sharding:
    """How processes share a module among them.

    Args:
        accelerator: the processes. All of them share each tensor, cut along its first axis.
        cpu_offload: keep shards, gradients and moments in the memory of the host, where the optimiser then steps.
        reshard: give the weights of a block back after its forward pass, and gather them again for the backward pass.
    """

    def __init__(self, accelerator: Accelerator, cpu_offload: bool = False, reshard: bool = True) -> None:
        self.device, kind = accelerator.device, accelerator.device.type
        self.mesh = init_device_mesh(kind, (accelerator.num_processes,))
        self.offload = CPUOffloadPolicy(pin_memory=kind == "cuda") if cpu_offload else OffloadPolicy()
        self.reshard = reshard
        # What autocast would make of them, made before they are gathered: it keeps what it makes, of every weight.
        half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
        self.precision = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)

    def copy(self, module: nn.Module) -> nn.Module:
        """A copy in the memory of the host, to be sharded; the parameters of the module itself wait there, too."""
        _park(module)
        return copy.deepcopy(module)

    @contextmanager
    def whole(self, module: nn.Module, waiting: nn.Module) -> Iterator[nn.Module]:
        """Inside, the module that waits has all weights of one in shards, in every process, on the device."""
        ours = module.state_dict()
        with torch.no_grad():
            for name, value in waiting.state_dict().items():
                value.copy_(full(ours[name]))
        waiting.to(self.device)
        try:
            yield waiting
        finally:
            _park(waiting)

    def shard(self, *modules: nn.Module) -> None:
        """Leave of modules, which are the same in all processes, each its shard; blocks are gathered one by one."""
        # What a block puts out may be a view; it is added to, never changed in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        options: dict[str, Any] = {"mesh": self.mesh, "offload_policy": self.offload}
        for module in modules:
            for block in blocks(module):
                policy = self.precision if _linear(block) else MixedPrecisionPolicy()
                fully_shard(block, reshard_after_forward=self.reshard, mp_policy=policy, **options)
            fully_shard(module, reshard_after_forward=False, **options)

    def spread(self, state: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of a checkpoint that was written whole, as this process holds it.

        Args:
            state: of the checkpoint.
            module, optimizer: what it is for.
        """
        ours = module.state_dict()
        every = [p for group in optimizer.param_groups for p in group["params"]]

        def change(path: str, leaf: Any) -> Any:
            part, _, name = path[1:].partition("/")
            target = ours.get(name) if part in ("module", "average") else None
            if part == "optimizer" and name.startswith("state/"):
                parameter = every[int(name.split("/")[1])]
                target = parameter if leaf.shape == parameter.shape else None
            if not isinstance(target, DTensor) or isinstance(leaf, DTensor):
                return leaf
            leaf = leaf.to(self.mesh.device_type)
            return distribute_tensor(leaf, self.mesh, target.placements, src_data_rank=None)

        return mapped(change, state)


def sharding_of(accelerator: Accelerator, wanted: bool, cpu_offload: bool) -> Sharding | None:
    """How a run is sharded: as its settings want it, or as the configuration of the launcher says; None: it is not.

    A process that was started without a launcher has nobody to share with. InputError for what cannot be done.
    """
    launched = accelerator.distributed_type is DistributedType.FSDP
    plugin = accelerator.state.fsdp_plugin if launched else None
    cpu_offload |= plugin is not None and isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    if not (wanted or launched) or not torch.distributed.is_initialized():
        if cpu_offload:
            raise InputError("cpu_offload: needs sharded and a launcher, such as accelerate launch: add them")
        return None
    if plugin is not None and plugin.fsdp_version != 2:
        raise InputError("fsdp_version: training knows FSDP 2 alone: set it in the configuration of the launcher")
    if plugin is not None and plugin.activation_checkpointing:
        raise InputError("fsdp_activation_checkpointing: set gradient_checkpointing in the recipe instead")
    if accelerator.mixed_precision == "fp16":
        raise InputError("mixed_precision fp16 is not possible with sharded weights: choose bf16")
    reshard = plugin is None or bool(plugin.reshard_after_forward)
    return Sharding(accelerator, cpu_offload, reshard)


def is_sharded(module: nn.Module) -> bool:
    """Whether each process has but a part of the weights."""
    return isinstance(module, FSDPModule)


def give_back(module: nn.Module) -> None:
    """After forward passes without a backward one: leave each process with its shards alone, and forget the passes.

    Blocks are gathered for the backward pass in the order in which they ran; those of an evaluation must not count.
    """
    if isinstance(module, FSDPModule):
        module.reset_iter_state()
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def full(tensor: Tensor) -> Tensor:
    """A number that processes hold together, as each has it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _park(module: nn.Module) -> None:
    """Move what is trained into the memory of the host; frozen parameters may be those of levels in use."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.cpu()


def _linear(block: nn.Module) -> bool:
    """Whether all its parameters are those of linear maps, which autocast computes in half precision."""
    with_parameters = (part for part in block.modules() if next(part.parameters(recurse=False), None) is not None)
    return all(isinstance(part, nn.Linear) for part in with_parameters)
