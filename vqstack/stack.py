"""The stack: levels in order, from pixels to the top map and back down."""

from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vqstack.checks import check_number
from vqstack.cluster import ClusterLevel, check_clusters
from vqstack.errors import InputError
from vqstack.level import CodeLevel, Level, LevelSettings, PixelLevel
from vqstack.likelihood import Distribution, Draw, PixelSettings, pixel_head
from vqstack.nets import ResidualBlock, ScalingPath, store_once
from vqstack.quantizer import QuantizerSettings
from vqstack.settings import Settings
from vqstack.shapes import AnyCodes, Pixels, Vectors, by_axis
from vqstack.terms import DecoderTerm, Term, Values, descend
from vqstack.variables import Variable


class StackSettings(Settings):
    """Settings of the levels."""

    levels: tuple[LevelSettings, ...] = Field(
        default=(
            LevelSettings(map=(4, 4), quantizer=QuantizerSettings(codebook_size=32)),
            LevelSettings(map=(2, 2), quantizer=QuantizerSettings(codebook_size=16)),
        ),
        min_length=1,
        description="The levels, level 1 (the one that reads pixels) first. On the command line they count from 0; "
        "naming one more than there are adds a copy of the last.",
    )
    pixels: PixelSettings = Field(default=PixelSettings(), description="The likelihood of the pixels.")
    pad_to: tuple[int, ...] | None = Field(
        default=None,
        description="Sites along each axis (of images: rows and columns, pixels) to which images are padded, cropped "
        "again before scoring; none: as is.",
    )
    sharing: Literal["none", "trunk"] = Field(
        default="none",
        description="trunk: residual blocks of equal width are one instance for all levels (encoders and decoders each "
        "among themselves), with an offset for each level; all else stays each level's own. With joint all levels "
        "train them; without, the lowest level that has them does.",
    )

    def unused(self) -> dict[str, str]:
        """Dotted name of each field that is read by nothing, as the others are -> why, and what to do."""
        return {"levels.0.embedding": "of levels above 1, which read codes: leave it out"}

    @model_validator(mode="after")
    def check_stack(self) -> "StackSettings":
        check_clusters(self.levels)
        dropout: dict[int, float] = {}
        for number, level in enumerate(self.levels):
            if self.sharing == "trunk" and dropout.setdefault(level.width, level.dropout) != level.dropout:
                raise ValueError(
                    f"levels.{number}.dropout is {level.dropout}, and {dropout[level.width]} in another level of width "
                    f"{level.width} that shares its blocks: make them equal"
                )
        return self


class Stack(nn.Module):
    """Ordered levels; ``levels[l-1]`` is level l.

    Args:
        settings: see :class:`StackSettings`.
        shape: channels, and sites along each axis: (c, h, w) of images.
        values: V, number of grey values.
    """

    def __init__(self, settings: StackSettings, shape: tuple[int, ...], values: int) -> None:
        super().__init__()
        self.shape, self.values = shape, values
        pixels = Variable.pixels(shape, values)
        padded = settings.pad_to or shape[1:]
        if len(padded) != len(shape) - 1 or any(more < own for more, own in zip(padded, shape[1:], strict=True)):
            raise InputError(f"pad_to: {by_axis(padded)} is smaller than the images: give {by_axis(shape[1:])} or more")
        head = pixel_head(settings.pixels, shape[0], values)
        levels: list[Level] = [PixelLevel(pixels, settings.levels[0], head, padded)]
        for level in settings.levels[1:]:
            kind = ClusterLevel if level.quantizer.kind == "cluster" else CodeLevel
            levels.append(kind(level, levels[-1]))
        self.levels = cast(list[Level], nn.ModuleList(levels))
        self.owners: dict[str, str] = {}
        """Shared blocks by name: where a later level has one, and where the level has it that comes first."""
        if settings.sharing == "trunk":
            self._share_trunks()

    def _share_trunks(self) -> None:
        """Block i of every encoder of a width becomes one instance, and so does block i of every decoder."""
        names = {id(module): name for name, module in self.named_modules()}
        for path in ("encoder", "up"):
            pools: dict[int, list[tuple[ResidualBlock, str]]] = {}
            for level in self.levels:
                network = getattr(level, path)
                if not isinstance(network, ScalingPath):  # the table of a cluster level
                    continue
                trunk = network.trunk
                pool = pools.setdefault(level.settings.width, [])
                for i, block in enumerate(trunk.blocks):
                    name = f"{names[id(trunk)]}.blocks.{i}."
                    if i < len(pool):
                        self.owners[name] = pool[i][1]
                    else:
                        pool.append((cast(ResidualBlock, block), name))
                trunk.share_blocks([block for block, _ in pool[: len(trunk.blocks)]])
        store_once(self, self.owners)

    def borrowed(self, number: int) -> list[nn.Parameter]:
        """Parameters of level ``number`` that belong to a lower level, too."""
        owned = {id(p) for level in self.levels[: number - 1] for p in level.parameters()}
        return [p for p in self.level(number).parameters() if id(p) in owned]

    def __len__(self) -> int:
        return len(self.levels)

    def level(self, number: int) -> Level:
        """Level l, counted from 1."""
        return self.levels[check_number(number, "level", 1, len(self.levels)) - 1]

    @property
    def map_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of z_1 … z_L; where a site has several codes, they come first."""
        return [level.upper.shape for level in self.levels]

    @property
    def codebook_sizes(self) -> list[int]:
        """K of each level."""
        return [level.quantizer.size for level in self.levels]

    @property
    def device(self) -> torch.device:
        """Where the levels live."""
        return self.levels[0].device

    @property
    def variables(self) -> list[Variable]:
        """Pixels, z_1 … z_L."""
        return [self.levels[0].lower, *(level.upper for level in self.levels)]

    def named(self, pixels: Pixels, codes: list[AnyCodes]) -> dict[str, Tensor]:
        """Pixels and z_1 … z_L by the names of their variables; InputError where they are none, of the same images."""
        if not isinstance(codes, list | tuple) or len(codes) != len(self):
            raise InputError(f"codes: give a list of {len(self)} maps, z_1 … z_{len(self)}")
        for variable, values in zip(self.variables, [pixels, *codes], strict=True):
            variable.check(values, None if variable.number == 0 else len(pixels), self.device)
        return {variable.name: values for variable, values in zip(self.variables, [pixels, *codes], strict=True)}

    def terms(self, level: int) -> list[Term]:
        """The decoders below z_level, top first."""
        return [DecoderTerm(self.level(number)) for number in range(level, 0, -1)]

    def encoder_state(self) -> dict[str, Tensor]:
        """What the codes of an image depend on: encoders, codebooks and embeddings, not decoders."""
        return {name: value for name, value in self.state_dict().items() if ".decoder." not in name}

    def encode(self, pixels: Pixels, up_to: int | None = None) -> list[AnyCodes]:
        """``[z_1 … z_up_to]`` (all levels by default): codes of codes of pixels."""
        maps: list[AnyCodes] = []
        self.levels[0].lower.check(pixels, device=self.device)
        for level in self.levels[: None if up_to is None else check_number(up_to, "up_to", 0, len(self))]:
            maps.append(level.code(maps[-1] if maps else pixels))
        return maps

    @torch.no_grad()
    def decode(self, codes: AnyCodes, level: int, num_codes: int | None = None) -> Pixels:
        """The mean pixels below the most likely maps below ``z_level``.

        Args:
            codes: z_level.
            level: its number.
            num_codes: of the codes of a site, where it has several, let only the first so many count; none: all.
        """
        below = self._below(codes, level, num_codes)
        if level == 1:
            return below.mean()
        draws = [Draw(mode=True)] * (level - 2) + [Draw(mean=True)]
        return self._descended(below, level, self.terms(level - 1), draws)["pixels"]

    @torch.no_grad()
    def likeliest(self, codes: AnyCodes, level: int, num_codes: int | None = None) -> AnyCodes:
        """The most likely z_1 below ``z_level``, level 2 or higher; arguments as of :meth:`decode`."""
        below = self._below(codes, level, num_codes)
        terms = self.terms(level - 1)[:-1]
        return self._descended(below, level, terms, [Draw(mode=True)] * len(terms))[self.levels[0].upper.name]

    def _below(self, codes: AnyCodes, level: int, num_codes: int | None) -> Distribution:
        top = self.level(level)
        return top.distribution(self.vectors(codes, level, num_codes), codes)

    def _descended(self, below: Distribution, level: int, terms: list[Term], draws: list[Draw]) -> Values:
        mode = below.mode()
        return descend(terms, {self.level(level).lower.name: mode}, draws, 0, range(len(mode)))

    def vectors(self, codes: AnyCodes, level: int, num_codes: int | None = None) -> Vectors:
        """The vectors of z_level; InputError where these are no codes of it."""
        top = self.level(level)
        top.upper.check(codes, device=self.device)
        if num_codes is not None:
            check_number(num_codes, "num_codes", 1, top.quantizer.codes)
        return top.quantizer.unchecked_lookup(codes, num_codes)
