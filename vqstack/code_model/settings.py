"""Settings of the transformers over maps."""

from typing import Literal

from pydantic import Field, model_validator

from vqstack.conditions import GIVEN
from vqstack.level import LevelSettings
from vqstack.settings import Settings
from vqstack.window import FAMILIES, DecoderSettings


class CodeModelSettings(Settings):
    """Settings of a transformer over codes."""

    family: Literal["autoregressive", "masked"] = Field(
        default="autoregressive",
        description="autoregressive: exact likelihood in one pass, cached steps; masked: order-agnostic, one pass a "
        "group for both.",
    )
    groups: int = Field(
        default=0,
        ge=0,
        description="K, count of groups of sites drawn one after the other, at most one a site; 0: one a site.",
    )
    wavefront: int = Field(
        default=0,
        ge=0,
        le=17,
        description="s, columns by which a row runs ahead of the next: all sites with the same s * row + column are "
        "one group, in place of groups; 0: groups as said there. Learns nearly as fast as one site a group.",
    )
    depth: int = Field(default=4, ge=1, le=1000, description="Transformer blocks, count.")
    dim: int = Field(default=128, ge=1, description="Features a site, count.")
    heads: int = Field(default=4, ge=1, description="Attention heads, count; divides dim.")
    window: int = Field(
        default=0,
        ge=0,
        le=16,
        description="Sites on each side of a site, along each axis, whose known values it reads directly, before any "
        "attention, count; 0: none. Large maps learn in fewer steps with 1 or 2.",
    )
    codebook: bool = Field(
        default=False,
        description="Read codes as their codebook vectors too, and score them by inner products with these too, so "
        "that what is learned of one holds for those near it (codes only). Large codebooks learn in fewer steps.",
    )
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Share of features and attention weights dropped, training only."
    )
    labels: bool = Field(default=True, description="Condition on the class label where the data set has one.")
    condition: bool = Field(
        default=True, description="Condition on the floats that data.condition names, where it does."
    )
    label_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of training images whose label and condition are hidden, both at once; guidance needs some.",
    )
    masks: Literal["schedule", "random"] = Field(
        default="schedule",
        description="Sites hidden in training (masked): from a random group of the schedule on, or any number of any "
        "sites.",
    )
    soft_targets: float = Field(
        default=0.0,
        ge=0,
        description="Temperature of training targets that share their mass with codes nearby, in mean squared "
        "distances between a code and its nearest neighbour (codes only); 0: hard targets.",
    )

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the conditions that are read where there are any, in the order of a model's."""
        return ("label",) * self.labels + (GIVEN,) * self.condition

    def unused(self) -> dict[str, str]:
        """Name of each field that is read by nothing, as the others are -> why, and what to do."""
        found: dict[str, str] = {}
        if self.family != "masked":
            found["masks"] = "of masked models alone, and family is autoregressive: leave one of them out"
        if self.wavefront:
            found["groups"] = "wavefront says which sites are drawn together: leave one of them out"
        return found

    @model_validator(mode="after")
    def check(self) -> "CodeModelSettings":
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}: change one of them")
        if self.wavefront and not self.window and self.family == "autoregressive":
            # A group that is smaller than the one before cannot read all of its values as inputs.
            raise ValueError("wavefront: a site needs its neighbours' values: set window to 1 or more")
        return self


class RefinerSettings(CodeModelSettings):
    """Settings of a refiner: the transformer that corrects the feed-forward decoder of one level."""

    level: int = Field(ge=1, description="l, no unit: the refiner models z_{l-1} given z_l; 1: pixels.")
    groups: int = Field(
        default=16,
        ge=0,
        description="K, count of groups of sites drawn one after the other, at most one a site; 0: one a site.",
    )
    labels: bool = Field(default=False, description="Condition on the class label too, where the data set has one.")
    condition: bool = Field(
        default=False, description="Condition on the floats that data.condition names too, if it does."
    )
    corruption: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Largest share of the parent codes replaced in training; half of the images stay clean.",
    )
    corrupt_by: Literal["neighbours", "samples"] = Field(
        default="neighbours",
        description="What replaces a parent code: one of its 8 nearest in the codebook, or a sample of the "
        "feed-forward decoder above (the top level has none and takes neighbours).",
    )

    joint_encoder: float = Field(
        default=0.0,
        ge=0,
        description="Weight of this refiner's nats (masked) beside the decoder's 1 while the level is trained, so that "
        "its codes hold what neighbours cannot tell; 0: the encoder is trained with the decoder alone.",
    )

    def unused(self) -> dict[str, str]:
        why = "corruption is 0, so no parent code is replaced: set it, or leave this out"
        return super().unused() | ({} if self.corruption else {"corrupt_by": why})

    @model_validator(mode="after")
    def check_refiner(self) -> "RefinerSettings":
        if self.joint_encoder and (self.family != "masked" or self.labels or self.condition):
            raise ValueError(
                "joint_encoder trains an encoder, which sees no class and no condition, with a masked refiner: set "
                "family to masked, and labels and condition to false"
            )
        if self.level == 1 and self.soft_targets:
            raise ValueError("soft_targets needs distances between codes: a refiner of level 1 models pixels")
        if self.level == 1 and self.codebook:
            raise ValueError("codebook needs codes to read: a refiner of level 1 models pixels")
        return self


def segments_of(prior: CodeModelSettings, levels: int) -> tuple[RefinerSettings, ...]:
    """With one transformer for all maps of codes: what models z_{L-1} … z_1, with the prior's settings."""
    return tuple(RefinerSettings(level=level, **prior.model_dump()) for level in range(levels, 1, -1))


def check_unified(
    prior: CodeModelSettings, refiners: tuple[RefinerSettings, ...], levels: tuple[LevelSettings, ...]
) -> None:
    """One transformer for all maps of codes is autoregressive, and is itself what refines the levels above 1."""
    if len(levels) < 2:
        raise ValueError("unified: there is one map of codes, and nothing to unite: leave unified out")
    if prior.family != "autoregressive":
        raise ValueError(f"unified: prior.family is {prior.family}: set it to autoregressive, or leave unified out")
    for refiner in refiners:
        if refiner.level > 1:
            raise ValueError(
                f"unified: the transformer refines level {refiner.level} itself: leave its refiner or unified out"
            )
    for number, level in enumerate(levels[1:], start=2):
        if level.quantizer.kind == "cluster":
            raise ValueError(
                f"unified: level {number} is a cluster level, whose decoder allows some codes only: leave one out"
            )
        decoder = level.decoder
        _check_family(decoder, f"unified: level {number}")
        if decoder.family == "window" and (any(decoder.tile) or prior.wavefront != decoder.steepness):
            raise ValueError(
                f"unified: level {number} has a window decoder, whose diagonals the transformer must follow: set "
                f"prior.wavefront to {decoder.steepness} and its tile to 0 0"
            )


def _check_family(decoder: DecoderSettings, where: str) -> None:
    if decoder.family not in FAMILIES.own:
        raise ValueError(f"{where} has a decoder of family {decoder.family}, which none corrects: leave it out")


def check_refiners(refiners: tuple[RefinerSettings, ...], levels: tuple[LevelSettings, ...]) -> None:
    """Each refiner belongs to a level of its own and draws its sites in the order of that level's decoder.

    Args:
        refiners: of any levels.
        levels: level 1, 2, ….
    """
    numbers = [refiner.level for refiner in refiners]
    for number in numbers:
        if number > len(levels):
            raise ValueError(f"refiners: level {number} does not exist: there are levels 1 … {len(levels)}")
        if numbers.count(number) > 1:
            raise ValueError(f"refiners: level {number} has more than one: keep one of them")
    for refiner in refiners:
        level = levels[refiner.level - 1]
        for name in ("corruption", "soft_targets", "joint_encoder"):
            if level.quantizer.kind == "cluster" and getattr(refiner, name):
                raise ValueError(
                    f"refiners: {name} asks for codes outside of their cluster, or for an encoder, and level "
                    f"{refiner.level} has neither: leave it at 0"
                )
        decoder = level.decoder
        _check_family(decoder, f"refiners: level {refiner.level}")
        if decoder.family != "window":
            continue
        if any(decoder.tile):
            raise ValueError(f"refiners: level {refiner.level} is drawn in tiles, a refiner is not: set tile to 0 0")
        if refiner.wavefront != decoder.steepness:
            raise ValueError(
                f"refiners: level {refiner.level} has a window decoder, which is drawn by diagonals of slope "
                f"{decoder.steepness}: set the refiner's wavefront to {decoder.steepness}"
            )
        if refiner.masks == "random" or refiner.joint_encoder:
            raise ValueError(
                f"refiners: level {refiner.level} has a window decoder, which sees what random masks hide and trains "
                "with its encoder by itself: leave masks and joint_encoder at their defaults"
            )
