"""Heads: what turns the numbers of each site into a distribution over a map."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from vqstack.errors import InputError
from vqstack.likelihood.base import Distribution
from vqstack.likelihood.categorical import Bernoulli, Categorical
from vqstack.likelihood.factors import Factor
from vqstack.likelihood.mixture import (
    LogisticMixture,
    around_neighbours,
    correction_units,
    logistic_parameters,
    starting_point,
)
from vqstack.likelihood.neighbours import Near
from vqstack.registry import Registry
from vqstack.settings import Settings
from vqstack.shapes import value_dtype

PIXELS = Registry[Any]("pixels", dict.fromkeys(("auto", "bernoulli", "categorical", "logistic_mixture")))
"""Classes of :class:`Head` by the names of their likelihoods."""


class PixelSettings(Settings):
    """Settings of the likelihood of the pixels."""

    kind: Annotated[str, AfterValidator(PIXELS.check)] = Field(
        default="auto",
        max_length=80,
        description="bernoulli, categorical or logistic_mixture; auto: bernoulli for 2 grey values, categorical up to "
        "32, mixed discretized logistics above; or the name under which a class of yours is registered "
        "(register_pixels).",
    )
    options: dict[str, int | float | str | bool] = Field(
        default={}, description="What a class of yours is given beside the other settings; any unit."
    )
    components: int = Field(default=10, ge=1, description="Logistics per pixel, count (logistic_mixture).")

    def of(self, size: int) -> str:
        """The kind for so many grey values."""
        automatic = "bernoulli" if size == 2 else "categorical" if size <= 32 else "logistic_mixture"
        return automatic if self.kind == "auto" else self.kind

    def unused_of(self, size: int) -> dict[str, str]:
        """Name of each field that is read by nothing with so many grey values -> why, and what to do."""
        kind = self.of(size)
        why = f"of a logistic_mixture alone, and the pixels have a {kind}: leave it out"
        return {"components": why} if kind in PIXELS.own and kind != "logistic_mixture" else {}


class Head(ABC):
    """Turns numbers of each site into a distribution over a map.

    Attributes:
        channels: values of one site that form a chain among themselves.
        size: V, number of values each of them can take.
        parameters: numbers that a site needs.
        ordered: whether values have an order, as those of pixels and not those of codes.
        network: what of it is trained; whoever holds the head registers it. Mostly there is nothing.
    """

    channels: int
    size: int
    parameters: int
    ordered: bool = True
    network: nn.Module | None = None

    @abstractmethod
    def __call__(self, parameters: Float[Tensor, "b P *map"]) -> Distribution:
        """The distribution over maps of these sites."""

    def copied(self) -> "Head":
        """The same with weights of its own, equal at first, where it has any."""
        return self

    def correct(self, base: Float[Tensor, "*n P"], correction: Float[Tensor, "*n P"]) -> Float[Tensor, "*n P"]:
        """The numbers of sites, moved by a correction; one of zeros leaves them as they are."""
        return base + correction

    def start(self) -> Float[Tensor, "P"]:
        """Numbers from which a network that knows nothing yet starts."""
        return torch.zeros(self.parameters)

    def relative(self, parameters: Float[Tensor, "b P *map"], near: Near) -> Float[Tensor, "b P *map"]:
        """The numbers that a likelihood needs, from those that a network gives relative to known neighbours.

        Args:
            parameters: as the network puts them out.
            near: the values beside each site; those one step back along some of the axes may be asked for.
        """
        return parameters


class CodeHead(Head):
    """Logits of each site to independent codes.

    Args:
        size: K, number of codes.
    """

    ordered = False

    def __init__(self, size: int) -> None:
        self.channels, self.size, self.parameters = 1, size, size

    def __call__(self, parameters: Float[Tensor, "b P *map"]) -> Distribution:
        return Categorical(parameters.movedim(1, -1))


class PixelHead(Head):
    """Numbers of each pixel to a distribution over pixels.

    Args:
        settings: which family.
        channels: c.
        size: V, number of grey values.
    """

    def __init__(self, settings: PixelSettings, channels: int, size: int) -> None:
        self.kind = settings.of(size)
        if self.kind == "bernoulli" and size != 2:
            raise InputError(f"pixels.kind: bernoulli needs 2 grey values, the images have {size}: choose another")
        self.channels, self.size = channels, size
        self.parameters = {
            "bernoulli": channels,
            "categorical": channels * size,
            "logistic_mixture": logistic_parameters(channels, settings.components),
        }[self.kind]
        """Numbers that a pixel needs: channels of the decoder's output."""

    def __call__(self, parameters: Float[Tensor, "b P *map"]) -> Distribution:
        if self.kind == "bernoulli":
            return Bernoulli(parameters)
        if self.kind == "categorical":
            return Categorical(
                parameters.unflatten(1, (self.channels, self.size)).movedim(2, -1), value_dtype(self.size)
            )
        return LogisticMixture(parameters, self.channels, self.size)

    def correct(self, base: Float[Tensor, "*n P"], correction: Float[Tensor, "*n P"]) -> Float[Tensor, "*n P"]:
        """The means of logistics move in units of their scales, all else as it is written.

        Many pixels are nearly certain: a step that is small for a wide logistic would throw a narrow one off its value.
        """
        if self.kind == "logistic_mixture":
            correction = correction * correction_units(base, self.channels, self.size)
        return base + correction

    def start(self) -> Float[Tensor, "P"]:
        """Logistics of different widths, none preferred."""
        if self.kind == "logistic_mixture":
            return starting_point(self.channels, self.parameters)
        return super().start()

    def relative(self, parameters: Float[Tensor, "b P *map"], near: Near) -> Float[Tensor, "b P *map"]:
        """Means of logistics are corrections to what the neighbours foretell, in units of their scales."""
        if self.kind == "logistic_mixture":
            return around_neighbours(parameters, near, self.channels, self.size)
        return parameters


PIXELS |= dict.fromkeys(PIXELS, PixelHead)
register_pixels = PIXELS.register
"""Let ``pixels.kind`` name a class of :class:`Head`, built with the settings, the number of channels and of values."""


def pixel_head(settings: PixelSettings, channels: int, size: int) -> Head:
    """The likelihood of pixels that the settings name; InputError where nothing is registered under that name."""
    return PIXELS.find(settings.kind, settings.options)(settings, channels, size)


def by_site(values: Tensor, channels: int) -> Int64[Tensor, "b N c"]:
    """Values with the sites in raster order, the channels of a site together."""
    return rearrange(values.long().flatten(1), "b (c n) -> b n c", c=channels)


def site_factors(
    head: Head, parameters: Float[Tensor, "b P n"], sites: Int64[Tensor, "n"], values: Int64[Tensor, "b M"]
) -> Iterator[Factor]:
    """The factors of some sites of a map whose numbers are known: one for codes, one a channel for pixels.

    Args:
        head: what the numbers stand for.
        parameters: of the sites.
        sites: in raster order of the map.
        values: of the whole map, channel by channel; what is chosen is read from there.
    """
    distribution = head(parameters)
    first = torch.arange(head.channels, device=sites.device)[:, None] * (values.shape[1] // head.channels)
    places = (first + sites).flatten()
    chosen = values[:, places]
    for factor in distribution.factors(chosen):
        mine = places[factor.sites]
        yield factor.at(mine)
        chosen[:, factor.sites] = values[:, mine]
