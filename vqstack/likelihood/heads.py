"""Heads: what turns the numbers of each site into a distribution over a map."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from vqstack.errors import InputError
from vqstack.likelihood.base import Distribution
from vqstack.likelihood.categorical import Bernoulli, Categorical
from vqstack.likelihood.mixture import LogisticMixture, correction_units, logistic_parameters


class PixelSettings(BaseModel):
    """Settings of the likelihood of the pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["auto", "bernoulli", "categorical", "logistic_mixture"] = Field(
        "auto",
        description="auto: bernoulli for 2 grey values, categorical up to 32, mixed discretized logistics above.",
    )
    components: int = Field(10, ge=1, description="Logistics a pixel, count (logistic_mixture).")


class Head(ABC):
    """Turns numbers of each site into a distribution over a map.

    Attributes:
        channels: values of one site that form a chain among themselves.
        size: V, number of values each of them can take.
        parameters: numbers a site needs.
    """

    channels: int
    size: int
    parameters: int

    @abstractmethod
    def __call__(self, parameters: Float[Tensor, "b P h w"]) -> Distribution:
        """The distribution over maps of h × w sites."""

    def correct(self, base: Float[Tensor, "*n P"], correction: Float[Tensor, "*n P"]) -> Float[Tensor, "*n P"]:
        """The numbers of sites, moved by a correction; one of zeros leaves them as they are."""
        return base + correction


class CodeHead(Head):
    """Logits of each site to independent codes.

    Args:
        size: K, number of codes.
    """

    def __init__(self, size: int) -> None:
        self.channels, self.size, self.parameters = 1, size, size

    def __call__(self, parameters: Float[Tensor, "b P h w"]) -> Distribution:
        return Categorical(rearrange(parameters, "b k h w -> b h w k"))


class PixelHead(Head):
    """Numbers of each pixel to a distribution over pixels.

    Args:
        settings: which family.
        channels: c.
        size: V, number of grey values.
    """

    def __init__(self, settings: PixelSettings, channels: int, size: int) -> None:
        automatic = "bernoulli" if size == 2 else "categorical" if size <= 32 else "logistic_mixture"
        self.kind = automatic if settings.kind == "auto" else settings.kind
        if self.kind == "bernoulli" and size != 2:
            raise InputError(f"pixels.kind: bernoulli needs 2 grey values, the images have {size}: choose another")
        self.channels, self.size = channels, size
        self.parameters = {
            "bernoulli": channels,
            "categorical": channels * size,
            "logistic_mixture": logistic_parameters(channels, settings.components),
        }[self.kind]
        """Numbers a pixel needs: channels of the decoder's output."""

    def __call__(self, parameters: Float[Tensor, "b P h w"]) -> Distribution:
        if self.kind == "bernoulli":
            return Bernoulli(parameters)
        if self.kind == "categorical":
            return Categorical(rearrange(parameters, "b (c v) h w -> b c h w v", v=self.size), torch.uint8)
        return LogisticMixture(parameters, self.channels, self.size)

    def correct(self, base: Float[Tensor, "*n P"], correction: Float[Tensor, "*n P"]) -> Float[Tensor, "*n P"]:
        """The means of logistics move in units of their scales, all else as it is written.

        Many pixels are nearly certain: a step that is small for a wide logistic would throw a narrow one off its value.
        """
        if self.kind == "logistic_mixture":
            correction = correction * correction_units(base, self.channels, self.size)
        return base + correction
