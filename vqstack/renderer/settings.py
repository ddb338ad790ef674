"""Settings of the renderer: its network, and what it is trained by."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from vqstack.renderer.perceptual import FEATURELESS, PERCEPTUAL
from vqstack.settings import Settings


class AdversarySettings(Settings):
    """The discriminator that a renderer is trained against."""

    weight: float = Field(
        default=0.0, ge=0, description="Of the adversarial term, beside the adaptive weight, no unit; 0: there is none."
    )
    start: int = Field(default=1000, ge=0, description="Steps before the discriminator takes part, count.")
    width: int = Field(
        default=64, ge=1, description="Channels of its first layer; they double with every further one, count."
    )
    layers: int = Field(default=3, ge=1, le=8, description="Layers that halve the resolution, count.")
    rate: float = Field(default=1.0, gt=0, description="Its learning rate as a multiple of the renderer's, no unit.")
    lecam: float = Field(default=0.05, ge=0, description="Weight of LeCAM regularisation, no unit; 0: none.")
    r1: float = Field(
        default=0.0, ge=0, description="Weight of R1 regularisation, no unit; 0: none. Its steps take twice as long."
    )
    joint: bool = Field(
        default=False,
        description="Let it take part where the encoder is trained with the renderer (joint_encoder), from the step "
        "start of level 1 on; the renderer's own phase begins with a new one.",
    )

    def unused(self) -> dict[str, str]:
        """Name of each field that is read by nothing -> why, and what to do."""
        why = "there is no discriminator: set renderer.adversary.weight, or leave it out"
        return {} if self.weight else dict.fromkeys((name for name in type(self).model_fields if name != "weight"), why)


class RendererSettings(Settings):
    """A second decoder of level 1, to look at; it is no likelihood and no row of the ledger."""

    width: int = Field(
        default=128, ge=1, description="Channels at the code map's resolution; halved at each stage, count."
    )
    least_width: int = Field(default=32, ge=1, description="Channels that no stage falls below, count.")
    blocks: int = Field(default=1, ge=0, description="Residual blocks at the code map, and of each stage, count.")
    attention: int = Field(
        default=0, ge=0, description="After how many of the blocks at the code map all its sites see each other, count."
    )
    norm: Literal["group", "site"] = Field(
        default="group",
        description="Statistics of the normalisation: of groups of channels over the whole map, or of each site by "
        "itself, with which the tiles of large images agree.",
    )
    pixel: float = Field(default=2.0, ge=0, description="Weight of the mean absolute error, no unit.")
    perceptual: str = Field(
        default="classifier",
        max_length=80,
        description="Features that pictures are compared by: of a small classifier of the training images, of their "
        "labels or else of ways to turn them, trained in the run; efficientnet-lite0 (extra perceptual); lpips (extra "
        "lpips, and weights that are fetched); none; or what is registered under a name.",
    )
    perceptual_weight: float = Field(default=1.0, ge=0, description="Weight of the perceptual distance, no unit.")
    adversary: AdversarySettings = Field(default=AdversarySettings(), description="The discriminator.")
    choose: Literal["auto", "distance", "frechet"] = Field(
        default="auto",
        description="By what of the validation split the best weights are chosen: the distance of pictures to their "
        "images, or the Fréchet distance of all pictures to all images. auto: frechet against a discriminator, which "
        "makes single pictures less faithful, else distance.",
    )
    joint_encoder: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the pictures' distance beside the likelihood in the training of level 1, nats per site "
        "and unit of distance; 0: the encoder is trained with the likelihood alone.",
    )

    def unused(self) -> dict[str, str]:
        """Name of each field that is read by nothing, as the others are -> why, and what to do."""
        why = "perceptual is none, so there is no such distance: set it, or leave this out"
        return {"perceptual_weight": why} if self.perceptual == "none" else {}

    @property
    def chosen_by(self) -> str:
        """The metric that the best weights have least of."""
        if self.choose != "auto":
            return self.choose
        return "frechet" if self.adversary.weight and self.perceptual not in FEATURELESS else "distance"

    @property
    def game_of_level(self) -> AdversarySettings:
        """The game while level 1 is trained with the renderer: none, unless it is asked for there too."""
        return self.adversary if self.adversary.joint else AdversarySettings()

    @model_validator(mode="after")
    def check_renderer(self) -> "RendererSettings":
        if self.choose == "frechet" and self.perceptual in FEATURELESS:
            raise ValueError(
                f"choose: frechet compares features, and perceptual {self.perceptual} has none: set another"
            )
        if self.adversary.joint and not (self.joint_encoder and self.adversary.weight):
            raise ValueError("adversary.joint: needs adversary.weight and joint_encoder: set both, or leave it out")
        return self

    @field_validator("perceptual")
    @classmethod
    def check_perceptual(cls, kind: str) -> str:
        return PERCEPTUAL.check(kind)
