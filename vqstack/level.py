"""One level of the hierarchy: an encoder to a code map, and a decoder that is a likelihood of what lies below.

The encoder is a function, ``z_l = enc_l(z_{l-1})`` with ``z_0`` the pixels: a network, then the nearest code. The
decoder is ``P_dec_l(z_{l-1} | z_l)``: a product over sites, all from one network pass, or a window decoder whose sites
also see the known values near them. Both are trained on ``E[-ln P_dec_l(z_{l-1} | z_l)]``.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field, field_validator
from torch import Tensor, nn

from vqstack.chains import ChainEmbedding, last
from vqstack.errors import InputError
from vqstack.likelihood import CodeHead, Distribution, Head, code_head
from vqstack.nets import NETWORKS, build_network, check_output
from vqstack.quantizer import Codebook, Quantized, Quantizer, QuantizerSettings, build_quantizer
from vqstack.settings import Settings
from vqstack.shapes import AnyCodes, Objective, Pixels, Vectors, by_axis, cropped, filled
from vqstack.variables import Variable
from vqstack.window import FAMILIES, DecoderSettings, Seeing, SeeingDecoder, limited


class NetworkSettings(Settings):
    """Which classes a level's encoder and decoder are built of."""

    kind: str = Field(
        default="residual",
        max_length=80,
        description="residual (one fold), staged (convolutions at every resolution), or the name under which "
        "classes of yours are registered (register_networks).",
    )
    options: dict[str, int | float | str | bool] = Field(
        default={},
        description="What the classes are given beside width, blocks and dropout, any unit. staged: least (channels), "
        "each (blocks of a stage), attention (blocks), norm (group, site).",
    )


class LevelSettings(Settings):
    """Settings of one level: its map, its quantizer and its two networks."""

    map: tuple[int, ...] = Field(
        default=(4, 4),
        max_length=3,
        description="Sites of the code map along each axis (of images: rows and columns); divides the map below.",
    )
    quantizer: QuantizerSettings = Field(default=QuantizerSettings(), description="The codebook.")
    networks: NetworkSettings = Field(default=NetworkSettings(), description="Encoder and decoder.")
    width: int = Field(default=64, ge=1, description="Channels of the residual blocks, count.")
    encoder_blocks: int = Field(default=2, ge=0, description="Residual blocks of the encoder, count.")
    decoder_blocks: int = Field(default=2, ge=0, description="Residual blocks of the decoder, count.")
    decoder: DecoderSettings = Field(
        default=DecoderSettings(), description="What the decoder sees beside the code map."
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of features dropped in residual blocks, training only."
    )
    embedding: Literal["codebook", "random"] = Field(
        default="codebook", description="What the embedding of the codes below starts from (levels above 1)."
    )

    @field_validator("map")
    @classmethod
    def _has_axes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError(
                "has no axes: for one code for the whole input give 1 an axis: [1] of sounds, [1, 1] of images"
            )
        return value

    def unused(self) -> dict[str, str]:
        """Name of each field that is read by nothing -> why, and what to do."""
        why = "the encoder of a cluster level is a table: leave it out"
        return dict.fromkeys(("encoder_blocks", "embedding"), why) if self.quantizer.kind == "cluster" else {}


def check_scale(number: int, below: tuple[int, ...], above: tuple[int, ...]) -> tuple[int, ...]:
    """Sites of the map below that one site covers along each axis; a map that does not divide is an error."""
    if len(above) != len(below):
        raise InputError(
            f"levels.{number - 1}.map: {by_axis(above)} has {len(above)} axes, what lies below it {len(below)} "
            f"({by_axis(below)}): give one number for each axis"
        )
    if min(above) < 1 or any(large % small for large, small in zip(below, above, strict=True)):
        raise InputError(
            f"levels.{number - 1}.map: {by_axis(above)} does not divide what lies below it "
            f"({by_axis(below)}): choose divisors of all sides, or set pad_to"
        )
    return tuple(large // small for large, small in zip(below, above, strict=True))


class ChainDecoder(nn.Module):
    """From vectors of z_l to features of the sites below, each of which has several codes.

    Args:
        up: vectors to features.
        chain: features to the codes of a site, one after the other.
    """

    def __init__(self, up: nn.Module, chain: nn.Module) -> None:
        super().__init__()
        self.up, self.chain = up, chain


class Level(nn.Module, ABC):
    """Encoder, quantizer and decoder of one level.

    Args:
        lower: the variable z_{l-1}.
        settings: see :class:`LevelSettings`.
        channels: features per site that the encoder reads.
        head: the likelihood of a site of the map below.
        padded: sites of the map below along each axis, padding included.

    Attributes:
        number: l, counted from 1 (the level that reads pixels).
        lower, upper: the variables z_{l-1}, over which its decoder is a distribution, and z_l.
    """

    def __init__(
        self, lower: Variable, settings: LevelSettings, *, channels: int, head: Head, padded: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.number, self.lower, self.settings, self.head = lower.number + 1, lower, settings, head
        self.map_shape = settings.map
        self.vector_dim = channels if isinstance(head, CodeHead) else 0  # numbers of a vector of the codes below
        self.scale = check_scale(self.number, padded, settings.map)
        self.quantizer = self._codebook()
        self.upper = Variable.codes(self.number, (*self.quantizer.chain, *settings.map), self.quantizer.size)
        encoder, decoder = NETWORKS.find(settings.networks.kind)
        shared: dict[str, Any] = {"map_shape": settings.map, "scale": self.scale, "dropout": settings.dropout}
        shared |= {"options": settings.networks.options}
        self.encoder = self._encoder(encoder, channels, shared)
        family = FAMILIES.find(settings.decoder.family, settings.decoder.options)
        outputs = settings.decoder.features if family else head.parameters
        sizes = self.quantizer.dim, settings.width, outputs
        up = build_network(decoder, *sizes, blocks=settings.decoder_blocks, **shared)
        self._raised_shape = outputs, *padded
        self.decoder = up
        if family:
            self.decoder = SeeingDecoder(up, family(settings.decoder, self.below, channels, head))
        elif head.network is not None:
            self.decoder = ChainDecoder(up, head.network)

    @abstractmethod
    def _codebook(self) -> Codebook: ...

    @abstractmethod
    def _encoder(self, network: Any, channels: int, shared: dict[str, Any]) -> nn.Module: ...

    @property
    def networks(self) -> list[nn.Module]:
        """The plain networks, which can be compiled."""
        window = [self.decoder.window] if isinstance(self.decoder, SeeingDecoder) else []
        return [self.encoder, self.up, *window]

    @property
    def up(self) -> Any:
        """The network from the code map to the resolution of the map below, a :class:`DecoderNetwork`."""
        return self.decoder.up if isinstance(self.decoder, SeeingDecoder | ChainDecoder) else self.decoder

    def raised(self, vectors: Vectors) -> tuple[Float[Tensor, "b F *map"], Float[Tensor, "b P *padded"]]:
        """What the network from the code map gives; InputError where it has another shape than the level needs."""
        found = self.up(vectors)
        if not isinstance(found, tuple) or len(found) != 2:
            raise InputError(f"networks: {type(self.up).__name__} must give two tensors: features, and numbers")
        check_output(self.up, "features", found[0], (self.up.features, *self.map_shape))
        check_output(self.up, "numbers", found[1], self._raised_shape)
        return found

    @abstractmethod
    def read(self, values: Int64[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        """What a window decoder reads of known values of the map below."""

    def crop(self, parameters: Float[Tensor, "b P *padded"]) -> Float[Tensor, "b P *map"]:
        """What stands for sites of the map below, without padding."""
        return parameters

    def support(self, codes: AnyCodes) -> Bool[Tensor, "b P *map"] | None:
        """The decoder's numbers that stay below codes z_l; the others become -inf. None: all stay."""
        return None

    def distribution(self, vectors: Vectors, codes: AnyCodes) -> Distribution:
        """The distribution over the map below given vectors of z_l; gradients pass to them and to the decoder."""
        base = self._from(self.crop(self.raised(vectors)[1]), codes)
        return base if isinstance(base, Seeing) else self.head(base)

    def _from(self, above: Float[Tensor, "b F *below"], codes: AnyCodes) -> Float[Tensor, "b P *below"] | Seeing:
        """The decoder's numbers of each site, or what finds them where they depend on known values."""
        support = self.support(codes)
        if isinstance(self.decoder, SeeingDecoder):
            return self.decoder.window.distribution(above, self.read, support)  # type: ignore[operator]
        return limited(above, support)

    def forward(self, below: Pixels | AnyCodes) -> Objective:
        """The training objective: nats per site of the map below plus the quantizer's own loss.

        Metrics: ``nats`` per image and the quantizer's loss; histogram: use of each code.
        """
        return self.train_and_encode(below)[0]

    def train_and_encode(self, below: Pixels | AnyCodes) -> tuple[Objective, AnyCodes]:
        """The training objective, see :meth:`forward`, and the codes z_l that it was computed with."""
        quantized = self.quantize(below)
        return self.objective(below, quantized, self.distribution(quantized.vectors, quantized.codes)), quantized.codes

    @abstractmethod
    def quantize(self, below: Pixels | AnyCodes) -> Quantized:
        """z_l in training: its codes, and vectors through which the gradient reaches the encoder."""

    def objective(self, below: Pixels | AnyCodes, quantized: Quantized, distribution: Distribution) -> Objective:
        """See :meth:`forward`; ``distribution`` is what the decoder makes of the quantized vectors."""
        nats = -distribution.unchecked_log_prob(below).mean()
        return Objective(
            nats / distribution.sites + quantized.loss,
            {"nats": nats.detach(), "quantizer": quantized.loss.detach()},
            {"codes": self.quantizer.counts(quantized.codes)},
        )

    @torch.no_grad()
    def encode(self, below: Pixels | AnyCodes) -> AnyCodes:
        """``z_l = enc_l(z_{l-1})``, [b, *map]. InputError where the map below is none of this model."""
        self.lower.check(below, device=self.device)
        return self.code(below)

    @abstractmethod
    def code(self, below: Pixels | AnyCodes) -> AnyCodes:
        """:meth:`encode` of a map that is known to fit."""

    def decode(self, codes: AnyCodes) -> Distribution:
        """``P_dec_l(. | z_l)``, a distribution over the map below. InputError where these are no codes of the level."""
        self.upper.check(codes, device=self.device)
        return self.distribution(self.quantizer.unchecked_lookup(codes), codes)

    @property
    def device(self) -> torch.device:
        """Where the level lives."""
        return next(self.parameters()).device

    def base_and_context(
        self, vectors: Vectors, codes: AnyCodes
    ) -> tuple[Float[Tensor, "b P *below"] | Seeing, Float[Tensor, "b F *map"]]:
        """What a refiner starts from: the decoder's numbers for the map below, and features of each site of z_l.

        The features are the codebook vectors, which are given, and those of the decoder's network.
        """
        features, above = self.raised(vectors)
        return self._from(self.crop(above), codes), torch.cat([vectors, features], 1)

    @property
    def context_features(self) -> int:
        """Number of features that :meth:`base_and_context` gives of each site."""
        return self.quantizer.dim + self.up.features

    @property
    def below(self) -> tuple[int, ...]:
        """Sites of the map below along each axis, without padding."""
        return self.lower.shape[-len(self.map_shape) :]


class EncodingLevel(Level):
    """A level whose encoder is a network and a quantizer."""

    quantizer: Quantizer

    def _codebook(self) -> Codebook:
        return build_quantizer(self.settings.quantizer)

    def _encoder(self, network: Any, channels: int, shared: dict[str, Any]) -> nn.Module:
        settings = self.settings
        sizes = channels, settings.width, self.quantizer.dim
        return build_network(network, *sizes, blocks=settings.encoder_blocks, **shared)

    @abstractmethod
    def features(self, below: Tensor) -> Vectors:
        """What the encoder reads, as floats: [b, channels, *map]."""

    def quantize(self, below: Pixels | AnyCodes) -> Quantized:
        vectors = self.encoder(self.features(below))
        check_output(self.encoder, "vectors", vectors, (self.quantizer.dim, *self.map_shape))
        return self.quantizer(vectors)

    @torch.no_grad()
    def code(self, below: Pixels | AnyCodes) -> AnyCodes:
        return self.quantizer.unchecked_encode(self.encoder(self.features(below)))


class PixelLevel(EncodingLevel):
    """Level 1: pixels to codes. Images may be padded to a size that divides; padding is neither scored nor shown.

    Args:
        pixels: the variable.
        settings: see :class:`LevelSettings`.
        head: the likelihood of the pixels.
        padded: sites along each axis after padding, at least those of the images.
    """

    def __init__(self, pixels: Variable, settings: LevelSettings, head: Head, padded: tuple[int, ...]) -> None:
        super().__init__(pixels, settings, channels=pixels.shape[0], head=head, padded=padded)
        after = [large - small for large, small in zip(padded, self.below, strict=True)]
        self.padding = [number for more in after[::-1] for number in (0, more)]  # the last axis first, as torch has it

    def features(self, below: Pixels) -> Vectors:
        x = self._scaled(filled(below, self.lower.size))
        return F.pad(x, self.padding, mode="replicate") if any(self.padding) else x

    def read(self, values: Int64[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        return self._scaled(values)

    def _scaled(self, values: Tensor) -> Tensor:
        return values.to(next(self.parameters()).dtype) * (2 / (self.lower.size - 1)) - 1

    def crop(self, parameters: Float[Tensor, "b P *padded"]) -> Float[Tensor, "b P *map"]:
        return cropped(parameters, self.below)


class CodeLevel(EncodingLevel):
    """Levels above 1: a code map to a smaller one, read through an embedding of the codes below.

    Args:
        settings: see :class:`LevelSettings`.
        below: the level whose codes this one reads; a site may have several.
    """

    def __init__(self, settings: LevelSettings, below: Level) -> None:
        size, dim, chain = below.quantizer.size, below.quantizer.dim, below.quantizer.chain
        head = code_head(chain, size, settings.width)
        super().__init__(below.upper, settings, channels=dim, head=head, padded=below.map_shape)
        self.embedding = ChainEmbedding(head.channels, size, dim)

    @torch.no_grad()
    def start_from(self, below: Level) -> None:
        """Let the embedding start from the codebook below (its level is trained first), if the settings ask for it.

        The codebook is brought to unit variance, which is what the network was initialised for.
        """
        if self.settings.embedding == "codebook":
            codebook = below.quantizer.codebook()
            standard = (codebook - codebook.mean(0)) / codebook.std().clamp(min=1e-6)
            self.embedding.weight.copy_(standard / self.head.channels**0.5)  # a site reads the sum of its codes

    def read(self, values: Int64[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        return self.embedding(values)

    def features(self, below: AnyCodes) -> Vectors:
        return self.embedding(last(below, self.head.channels)).movedim(-1, 1)
