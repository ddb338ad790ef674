"""Networks: residual blocks, a path down to a code map and a path up from one.

They map float tensors to float tensors and know neither codes nor losses. A level takes any pair of networks that keep
the two protocols, :class:`EncoderNetwork` and :class:`DecoderNetwork`, and are registered under a name.

The project's own pairs:

- ``residual``, :class:`Down` and :class:`Up`. All their convolutions run at the resolution of the *smaller* map: the
  way down starts by folding pixels into channels, the way up ends in a pixel shuffle. One at full resolution would cost
  most of the training time and, where a window decoder sees the neighbours, adds little.
- ``staged``, :class:`StagedDown` and :class:`StagedUp`. They go in stages, with convolutions at every resolution, for
  large patches, which one fold would leave to a single layer. They have no positions.
"""

import inspect
from abc import ABC, abstractmethod
from functools import cache
from math import prod
from typing import Any, Protocol

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vqstack.errors import InputError
from vqstack.registry import Registry
from vqstack.shapes import Vectors


class EncoderNetwork(Protocol):
    """``encode``: values of a map to vectors of a smaller one.

    Built as ``network(channels, width, out, blocks=…, map_shape=…, scale=…, dropout=…, **options)``, as :class:`Down`.
    """

    def __call__(self, values: Float[Tensor, "b channels *below"]) -> Float[Tensor, "b out *map"]: ...


class DecoderNetwork(Protocol):
    """``decode``: vectors of a map to features of its sites, which refiners read, and to numbers of the larger map.

    Built as :class:`EncoderNetwork`.

    Attributes:
        features: how many features each site has.
    """

    features: int

    def __call__(
        self, vectors: Float[Tensor, "b channels *map"]
    ) -> tuple[Float[Tensor, "b features *map"], Float[Tensor, "b out *below"]]: ...


NETWORKS = Registry[tuple[Any, Any]]("networks", {})


def register_networks(kind: str, encoder: type[nn.Module], decoder: type[nn.Module]) -> None:
    """Let levels be built of these classes where ``networks.kind`` of their settings says so.

    Args:
        kind: a name that is not taken by other classes.
        encoder, decoder: modules that keep :class:`EncoderNetwork` and :class:`DecoderNetwork`.
    """
    NETWORKS.register(kind, (encoder, decoder))


def build_network(network: Any, *sizes: Any, what: str = "networks", **settings: Any) -> Any:
    """A module of a class that is registered; InputError for options that the class does not take."""
    try:
        inspect.signature(network).bind(*sizes, **settings)
    except TypeError as error:
        raise InputError(f"{what}.options: {network.__name__}: {error}: give what its class takes") from error
    return network(*sizes, **settings)


def convolution(axes: int) -> Any:
    """The convolution of torch for maps of one, two or three axes."""
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]


def over_map(x: Float[Tensor, "d"], axes: int) -> Float[Tensor, "d ..."]:
    """Features that are the same at all sites, to be added to a map."""
    return x.view(-1, *(1,) * axes)


def fold(x: Float[Tensor, "b c *below"], scale: tuple[int, ...]) -> Float[Tensor, "b d *map"]:
    """Space to depth: every patch of ``scale`` sites becomes the channels of one site."""
    apart, together = _patches(len(scale))
    return rearrange(x, f"{apart} -> {together}", **{f"p{axis}": size for axis, size in enumerate(scale)})


def unfold(x: Float[Tensor, "b d *map"], scale: tuple[int, ...]) -> Float[Tensor, "b c *below"]:
    """Depth to space (pixel shuffle), the inverse of :func:`fold`; patches need not be square."""
    apart, together = _patches(len(scale))
    return rearrange(x, f"{together} -> {apart}", **{f"p{axis}": size for axis, size in enumerate(scale)})


@cache
def _patches(axes: int) -> tuple[str, str]:
    """For einops: a map of patches of p0 × p1 × … sites, and the map in which each is one site."""
    sites, patch = [f"m{axis}" for axis in range(axes)], [f"p{axis}" for axis in range(axes)]
    apart = " ".join(f"({m} {p})" for m, p in zip(sites, patch, strict=True))
    return f"b c {apart}", f"b (c {' '.join(patch)}) {' '.join(sites)}"


def norm(width: int) -> nn.GroupNorm:
    """Group normalisation with at least 16 channels a group, so that 1×1 maps still have something to normalise."""
    groups = max(g for g in (1, 2, 4, 8) if width % g == 0 and (g == 1 or width // g >= 16))
    return nn.GroupNorm(groups, width)


class ResidualBlock(nn.Module):
    """``x + conv(silu(norm(conv(silu(norm(x))))))``; the last convolution starts at zero, so the block starts as x."""

    is_block = True  # see vqstack/fit/blocks.py

    def __init__(self, width: int, dropout: float = 0.0, axes: int = 2) -> None:
        super().__init__()
        convolve = convolution(axes)
        last = convolve(width, width, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.body = nn.Sequential(
            norm(width),
            nn.SiLU(),
            convolve(width, width, 3, padding=1),
            norm(width),
            nn.SiLU(),
            nn.Dropout(dropout),
            last,
        )

    def forward(self, x: Vectors, offset: Float[Tensor, "d"] | None = None) -> Vectors:
        return x + self.body(x if offset is None else x + over_map(offset, x.ndim - 2))


class Trunk(nn.Module):
    """Residual blocks of one width after a learned offset for each site.

    The offset tells the otherwise shift-invariant convolutions where in the image they are.

    Args:
        width: channels.
        blocks: number of residual blocks.
        map_shape: sites along each axis at which the trunk runs.
        dropout: share of features dropped inside each block while training.
    """

    def __init__(self, width: int, blocks: int, map_shape: tuple[int, ...], dropout: float = 0.0) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(width, *map_shape))
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout, len(map_shape)) for _ in range(blocks)))
        self.level: nn.Parameter | None
        self.register_parameter("level", None)

    def share_blocks(self, blocks: list[ResidualBlock]) -> None:
        """Run these blocks, which other trunks run too, from now on; each reads its input with an offset of our own.

        The offsets [blocks, width] are the level's embedding; they start at zero.
        """
        self.blocks = nn.Sequential(*blocks)
        self.level = nn.Parameter(torch.zeros(len(blocks), len(self.position)))

    def forward(self, x: Vectors) -> Vectors:
        x = x + self.position
        for number, block in enumerate(self.blocks):
            x = block(x) if self.level is None else block(x, self.level[number])
        return x


class ScalingPath(nn.Module, ABC):
    """Between a map and a smaller one: a convolution in, a trunk and a 1×1 convolution out, at the smaller map's sites.

    Args:
        channels: features per site of the input.
        width, blocks, dropout: see :class:`Trunk`.
        out: features per site of the output.
        map_shape: sites of the smaller map along each axis.
        scale: how many sites of the larger map one site of the smaller one covers along each axis.

    Attributes:
        features: numbers of a site that the last convolution reads.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        out: int,
        *,
        blocks: int,
        map_shape: tuple[int, ...],
        scale: tuple[int, ...],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale, self.features = scale, width
        read, numbers = self._folded(channels, out, prod(scale))
        convolve = convolution(len(map_shape))
        self.enter = convolve(read, width, 3, padding=1)
        self.trunk = Trunk(width, blocks, map_shape, dropout)
        self.leave = nn.Sequential(norm(width), nn.SiLU(), convolve(width, numbers, 1))

    @staticmethod
    @abstractmethod
    def _folded(channels: int, out: int, patch: int) -> tuple[int, int]:
        """Numbers read and put out for each site of the smaller map, which covers ``patch`` sites of the larger one."""


class Down(ScalingPath):
    """From a map with ``channels`` features per site to a smaller map with ``out`` features per site."""

    @staticmethod
    def _folded(channels: int, out: int, patch: int) -> tuple[int, int]:
        return channels * patch, out

    def forward(self, x: Float[Tensor, "b c *below"]) -> Float[Tensor, "b d *map"]:
        return self.leave(self.trunk(self.enter(fold(x, self.scale))))


class Up(ScalingPath):
    """From a map with ``channels`` features per site to a larger one with ``out`` features per site; mirrors Down."""

    @staticmethod
    def _folded(channels: int, out: int, patch: int) -> tuple[int, int]:
        return channels, out * patch

    def forward(self, x: Vectors) -> tuple[Float[Tensor, "b w *map"], Float[Tensor, "b out *below"]]:
        """What the last layer reads, at the smaller map, and the output."""
        normalise, activate, last = self.leave
        features = activate(normalise(self.trunk(self.enter(x))))
        return features, unfold(last(features), self.scale)


register_networks("residual", Down, Up)


def stages_of(scale: tuple[int, ...]) -> list[tuple[int, ...]]:
    """By how much each stage enlarges each axis: the prime factors of ``scale``, the largest first.

    ``(8, 8)`` gives three stages of (2, 2); an axis that has fewer factors than another stays as it is in the last.
    """
    factors = [_primes(size) for size in scale]
    count = max(map(len, factors))
    return [tuple(axis[i] if i < len(axis) else 1 for axis in factors) for i in range(count)]


def _primes(number: int) -> list[int]:
    found, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return found[::-1]


class Stage(nn.Module):
    """Between two resolutions: residual blocks at the larger map, a convolution and a shuffle from or to the smaller.

    Args:
        width: channels at the larger map.
        small: channels at the smaller map.
        factors: how many sites of the larger map one of the smaller covers along each axis.
        blocks: residual blocks, count.
        dropout: of these.
    """

    def __init__(self, width: int, small: int, factors: tuple[int, ...], blocks: int, dropout: float) -> None:
        super().__init__()
        self.width, self.factors = width, factors
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout, len(factors)) for _ in range(blocks)))


class Growing(Stage):
    """From the smaller map to the larger.

    All sites under one start with the same numbers (Aitken et al. 2017): a shuffle of unrelated ones would begin with a
    pattern of dots, which training has to remove.
    """

    def __init__(self, width: int, small: int, factors: tuple[int, ...], blocks: int, dropout: float) -> None:
        super().__init__(width, small, factors, blocks, dropout)
        self.grow = convolution(len(factors))(small, width * prod(factors), 3, padding=1)
        patch = prod(factors)
        for parameter in self.grow.parameters():
            parameter.data = parameter.data[::patch].repeat_interleave(patch, 0)  # in the order of unfold

    def forward(self, x: Vectors) -> Float[Tensor, "b out *larger"]:
        return self.blocks(unfold(self.grow(x), self.factors))


class Shrinking(Stage):
    """From the larger map to the smaller."""

    def __init__(self, width: int, small: int, factors: tuple[int, ...], blocks: int, dropout: float) -> None:
        super().__init__(width, small, factors, blocks, dropout)
        self.shrink = convolution(len(factors))(width * prod(factors), small, 3, padding=1)

    def forward(self, x: Vectors) -> Float[Tensor, "b out *smaller"]:
        return self.shrink(fold(self.blocks(x), self.factors))


class StagedPath(nn.Module):
    """Stages between a map and a smaller one; channels are halved from stage to stage towards the larger.

    Args:
        width, blocks, dropout: residual blocks at the smaller map.
        scale: how many sites of the larger map one site of the smaller one covers along each axis.
        stage: a class of :class:`Stage`.
        least: channels that no stage falls below, unless ``width`` does.
        each: residual blocks of each stage, count.
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        scale: tuple[int, ...],
        dropout: float,
        stage: type[Stage],
        least: int,
        each: int,
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(width, dropout, len(scale)) for _ in range(blocks)))
        stages, here = list[Stage](), width
        for factors in stages_of(scale):  # coarse to fine, whichever way the path goes
            finer = max(here // 2, min(least, here))
            stages.append(stage(finer, here, factors, each, dropout))
            here = finer
        self.stages = nn.ModuleList(stages)
        self.width, self.finest = width, here  # channels at either end

    def floats(self, sites: tuple[int, ...]) -> int:
        """Numbers that a backward pass keeps of an image, roughly: of each residual block six maps of its width."""
        here = prod(sites)
        kept = here * self.width * (6 * len(self.blocks) + 3)
        for stage in self.stages:
            assert isinstance(stage, Stage)
            here *= prod(stage.factors)
            kept += here * stage.width * (6 * len(stage.blocks) + 2)
        return kept


class StagedDown(StagedPath):
    """An :class:`EncoderNetwork` in stages; arguments as of :class:`ScalingPath` and :class:`StagedPath`."""

    def __init__(
        self,
        channels: int,
        width: int,
        out: int,
        *,
        blocks: int,
        map_shape: tuple[int, ...],
        scale: tuple[int, ...],
        dropout: float = 0.0,
        least: int = 32,
        each: int = 1,
    ) -> None:
        super().__init__(width, blocks, scale, dropout, Shrinking, least, each)
        convolve = convolution(len(scale))
        self.enter = convolve(channels, self.finest, 3, padding=1)
        self.leave = nn.Sequential(norm(width), nn.SiLU(), convolve(width, out, 1))

    def forward(self, x: Float[Tensor, "b c *below"]) -> Float[Tensor, "b d *map"]:
        x = self.enter(x)
        for stage in reversed(self.stages):
            x = stage(x)
        return self.leave(self.blocks(x))


class StagedUp(StagedPath):
    """A :class:`DecoderNetwork` in stages; arguments as of :class:`ScalingPath` and :class:`StagedPath`.

    Attributes:
        features: of each site of the smaller map.
        last: the convolution that puts out the numbers of the larger map.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        out: int,
        *,
        blocks: int,
        map_shape: tuple[int, ...],
        scale: tuple[int, ...],
        dropout: float = 0.0,
        least: int = 32,
        each: int = 1,
    ) -> None:
        super().__init__(width, blocks, scale, dropout, Growing, least, each)
        convolve, self.features = convolution(len(scale)), width
        self.enter = convolve(channels, width, 3, padding=1)
        self.ready = nn.Sequential(norm(self.finest), nn.SiLU())
        self.last = convolve(self.finest, out, 3, padding=1)

    def forward(self, x: Vectors) -> tuple[Float[Tensor, "b w *map"], Float[Tensor, "b out *below"]]:
        """What the blocks at the smaller map put out, and the output."""
        features = x = self.blocks(self.enter(x))
        for stage in self.stages:
            x = stage(x)
        return features, self.last(self.ready(x))


register_networks("staged", StagedDown, StagedUp)


def rename_state(module: nn.Module, names: dict[str, str]) -> None:
    """Give the state of a wrapped library module names of our own.

    Checkpoints and released artefacts then survive a change of library.

    Args:
        module: the adapter that holds the library's module.
        names: our name to the library's, each a parameter, buffer or submodule path relative to ``module``.
    """

    def translate(state: dict[str, Tensor], prefix: str, pairs: list[tuple[str, str]]) -> None:
        for key in [k for k in state if k.startswith(prefix)]:
            rest = key[len(prefix) :]
            for old, new in pairs:
                if rest == old or rest.startswith(old + "."):
                    state[prefix + new + rest[len(old) :]] = state.pop(key)
                    break

    to_ours = [(theirs, ours) for ours, theirs in names.items()]
    to_theirs = list(names.items())

    def saving(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
        translate(state, prefix, to_ours)

    def loading(module: nn.Module, state: dict[str, Tensor], prefix: str, *unused: object) -> None:
        translate(state, prefix, to_theirs)

    module.register_state_dict_post_hook(saving)
    module.register_load_state_dict_pre_hook(loading)


def store_once(module: nn.Module, owners: dict[str, str]) -> None:
    """Leave shared parameters out of the state of a module where they stand a second time, and find them on loading.

    Args:
        module: whose submodules share parameters.
        owners: prefix of names that are left out -> prefix under which the same tensors are stored.
    """

    def saving(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
        for key in [key for key in state if key.startswith(tuple(prefix + name for name in owners))]:
            del state[key]

    def loading(module: nn.Module, state: dict[str, Tensor], prefix: str, *unused: object) -> None:
        for name, owner in owners.items():
            for key in [key for key in state if key.startswith(prefix + owner)]:
                state[prefix + name + key[len(prefix + owner) :]] = state[key]

    module.register_state_dict_post_hook(saving)
    module.register_load_state_dict_pre_hook(loading)
