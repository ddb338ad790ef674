"""What the two classes of code models share: inputs, context, output, training objective.

A code model is a normalised distribution over maps of N sites: codes, or pixels whose c channels form a chain inside
each site. Its network puts out P numbers per site, which a :class:`~vqstack.likelihood.Head` turns into a distribution:

    parameters of site i = base_i + to_parameters(hidden_i)

(means of logistics move in units of their scales, see ``Head.correct``). The last layer starts at zero, so a model
starts exactly as its base: the feed-forward decoder's distribution for a refiner, the uniform one for a prior.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vqstack.chains import ChainEmbedding
from vqstack.checks import check_map, check_number
from vqstack.code_model.codebook import CodebookSpace
from vqstack.code_model.settings import CodeModelSettings
from vqstack.code_model.window import Window
from vqstack.conditions import (
    CONDITION_NAMES,
    GIVEN,
    ClassCondition,
    Conditioning,
    Conditions,
    ConditionSettings,
    build_condition,
)
from vqstack.errors import InputError
from vqstack.likelihood import Clamped, Distribution, Factor, Guided, Head, Known, by_site, site_factors
from vqstack.nets import convolution, rename_state, unfold
from vqstack.quantizer import in_chunks
from vqstack.schedule import Schedule
from vqstack.shapes import AnyCodes, Nats, Objective, Pixels, cropped, filled, of_pixels, value_dtype, widened
from vqstack.window import Seeing


class Before(NamedTuple):
    """What stands before a map in a sequence of maps (see :mod:`vqstack.code_model.unified`).

    Attributes:
        inputs: of the network at each place, [b, M, d], given the conditioning.
        group: number of the group of each place, [M], none smaller than the one before it.
    """

    inputs: Callable[[Conditioning], Float[Tensor, "b M d"]]
    group: Int64[Tensor, "M"]


class Parent(NamedTuple):
    """What a refiner sees of the map above.

    Attributes:
        base: parameters of the decoder's distribution of the map below, [b, P, h, w], or a window decoder, whose
            parameters depend on known values.
        features: of each site of the parent map, [b, F, rows, columns].
        share: which share of the parent's codes may be replaced ones, [b].
        before: where the map is a segment of a sequence, what stands before it.
    """

    base: Float[Tensor, "b P *map"] | Seeing
    features: Float[Tensor, "b F rows columns"]
    share: Float[Tensor, "b"]
    before: Before | None = None


class CodeModel(nn.Module, ABC):
    """A normalised model of maps. ``forward`` is the training objective, ``distribution`` everything else.

    Args:
        settings: see :class:`CodeModelSettings`.
        map_shape: rows and columns of one map.
        head: what a site's numbers stand for.
        classes: number of class labels in the data, which it is conditional on if its settings say so; 0: none.
        scale: rows and columns that one site of the parent map covers; none: no parent.
        features: features of each site of the parent map.
        vector_dim: numbers of a codebook vector of the codes that are modelled.
        backbone: of another model with the same settings, to be shared with it; none: one of its own.
        given: floats that each image is given, which it is conditional on if its settings say so; none: no floats.

    Attributes:
        sites: N.
        size: V, number of values.
        schedule: groups of sites in the order of drawing.
    """

    def __init__(
        self,
        settings: CodeModelSettings,
        map_shape: tuple[int, ...],
        head: Head,
        classes: int,
        scale: tuple[int, ...] | None = None,
        features: int = 0,
        vector_dim: int = 0,
        backbone: nn.Module | None = None,
        given: ConditionSettings | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.map_shape, self.head, self.scale = settings, map_shape, head, scale
        self.size, self.sites = head.size, prod(map_shape)
        self.looked = False  # whether the numbers of a training step were looked at
        self.classes = classes if settings.labels else 0
        self.schedule = (
            Schedule.wavefront(map_shape, settings.wavefront)
            if settings.wavefront
            else self._schedule(min(settings.groups or self.sites, self.sites))
        )
        self.conditions = Conditions({"label": ClassCondition(self.classes, settings.dim)} if self.classes else {})
        if given is not None and settings.condition:
            self.conditions[GIVEN] = build_condition(given, settings.dim)
        # A table where values are few, a linear map of the scaled value where they are many grey values.
        self.tabled = not head.ordered or head.size <= 32
        self.embedding = (
            ChainEmbedding(head.channels, head.size, settings.dim)
            if self.tabled
            else nn.Linear(head.channels, settings.dim)
        )
        self.chain = head.network
        if head.network is not None and (settings.codebook or settings.soft_targets):
            raise InputError("codebook and soft_targets: a site has several codes here: leave them out")
        if settings.codebook and not vector_dim:
            raise ValueError("codebook: the vectors of the codes are needed, give vector_dim")
        self.space = CodebookSpace(head.size, vector_dim, settings.dim) if settings.codebook else None
        self.position = nn.Parameter(torch.randn(self.sites, settings.dim) * 0.02)
        if scale is not None:
            self.parent = convolution(len(scale))(features, settings.dim * prod(scale), 1, bias=False)
            self.corruption = nn.Parameter(torch.zeros(settings.dim))
        self.window = self._window()
        self.backbone = backbone or self._backbone(
            dim=settings.dim,
            depth=settings.depth,
            heads=settings.heads,
            attn_dim_head=settings.dim // settings.heads,
            attn_flash=True,
            attn_dropout=settings.dropout,
            ff_dropout=settings.dropout,
            cross_attend=self.conditions.attended,
            cross_attn_add_zero_kv=True,  # all that there is to attend to where nothing is told
        )
        for _, block, _ in self.backbone.layers:  # type: ignore[union-attr]  # attentions and feed-forward networks
            block.is_block = True  # see vqstack/fit/blocks.py
        self.to_logits = nn.Linear(settings.dim, head.parameters)
        if isinstance(self.embedding, nn.Embedding):
            nn.init.normal_(self.embedding.weight, std=0.02)
        for _, condition in self.conditions.items():
            condition.reset()
        if scale is not None:  # as large as what else a site reads, which it would drown otherwise
            nn.init.normal_(self.parent.weight, std=0.02 / features**0.5)
        nn.init.zeros_(self.to_logits.weight)  # starts as the base, or as the uniform distribution
        nn.init.zeros_(self.to_logits.bias)
        self.soft_codebook: Tensor | None  # in units in which the mean squared distance to the nearest other code is 1
        self.register_buffer("soft_codebook", None, persistent=False)
        rename_state(self, _own_names(settings.depth, self.conditions.attended) | CONDITION_NAMES)
        self._add_inputs()

    @abstractmethod
    def _add_inputs(self) -> None:
        """What the network reads where there is no value to read."""

    @abstractmethod
    def _schedule(self, groups: int) -> Schedule: ...

    @abstractmethod
    def _window(self) -> Window | None:
        """What a site reads of its neighbours; none where it reads nothing, or could not."""

    @abstractmethod
    def _backbone(self, **settings: Any) -> nn.Module: ...

    def log_prob(self, values: AnyCodes | Pixels, conditioning: Conditioning, parent: Parent | None = None) -> Nats:
        """ln P(values | label, parent) of each image under the schedule, nats; exact. InputError if they do not fit."""
        self.check(values, conditioning)
        return self.unchecked_log_prob(values, conditioning, parent)

    def check(self, values: AnyCodes | Pixels, conditioning: Conditioning, look: bool = True) -> None:
        """InputError unless these are maps of the model, and what as many images are given; see :func:`check_map`."""
        shape = (self.head.channels,) if self.head.ordered or self.head.channels > 1 else ()
        kind = of_pixels(values, value_dtype(self.size)) if self.head.ordered else {"dtype": torch.int64}
        check_map(values, "values", (*shape, *self.map_shape), self.size, self.position.device, look=look, **kind)
        self.conditions.check(conditioning, len(values), self.position.device, look)

    @abstractmethod
    def unchecked_log_prob(
        self, values: AnyCodes | Pixels, conditioning: Conditioning, parent: Parent | None = None
    ) -> Nats:
        """:meth:`log_prob` of values and conditioning that are known to fit."""

    @abstractmethod
    def _distribution(
        self, batch: int, conditioning: Conditioning, device: torch.device, parent: Parent | None, known: Known | None
    ) -> Distribution: ...

    @abstractmethod
    def _training_nats(
        self, values: AnyCodes | Pixels, conditioning: Conditioning, parent: Parent | None
    ) -> tuple[Tensor, Nats]:
        """The loss, nats per image averaged over the batch, and (estimates of) -ln P of each image."""

    @property
    def networks(self) -> list[nn.Module]:
        """The plain networks, which can be compiled."""
        return [self.backbone]

    def distribution(
        self,
        batch: int,
        conditioning: Conditioning,
        device: torch.device,
        parent: Parent | None = None,
        *,
        known: Known | None = None,
        guidance: float = 1.0,
    ) -> Distribution:
        """P(. | label, parent) for each of ``batch`` images.

        Args:
            batch: number of images.
            conditioning: what the images are given, by the name of each condition that the model reads.
            device: where the model lives.
            parent: see :class:`Parent`; for refiners.
            known: sites that are given. An autoregressive model takes them as they come; a masked one sees all of them
                from the start.
            guidance: scale of classifier-free guidance, see :class:`~vqstack.likelihood.Guided`.
        """
        self.conditions.check(conditioning, check_number(batch, "batch", 0, 2**48), device)
        distribution = self._distribution(batch, conditioning, device, parent, known)
        if guidance != 1.0 and self.conditions:
            without = self._distribution(batch, self.conditions.nothing(batch, device), device, parent, known)
            distribution = Guided(distribution, without, guidance)
        return distribution if known is None else Clamped(distribution, known)

    def forward(self, values: AnyCodes | Pixels, *tensors: Tensor) -> Objective:
        """Nats per site; in training nothing is told of some images.

        Args:
            values: the maps.
            tensors: what the images are given, in the order of ``conditions``; then, for refiners, the fields of a
                :class:`Parent`.

        InputError as of :meth:`check`; on an accelerator, where a step would wait for it, ranges in the first step.
        """
        conditioning, parent = self.conditions.named(tensors)
        self.check(values, conditioning, look=not (self.looked and self.position.is_cuda))
        self.looked = True
        loss, nats = self._training_nats(values, self.hide(conditioning), Parent(*parent) if parent else None)  # type: ignore[arg-type]
        return Objective(loss / self.sites, {"nats": nats.mean().detach()})

    def hide(self, conditioning: Conditioning) -> Conditioning:
        """The same, in training with nothing told of some images."""
        if not self.training or not self.settings.label_dropout or not conditioning:
            return conditioning
        first = next(iter(conditioning.values()))
        which = torch.rand(len(first), device=first.device) < self.settings.label_dropout
        return self.conditions.hide(conditioning, which)

    def know_codebook(self, codebook: Float[Tensor, "K v"]) -> None:
        """Tell the model, before training, which codes are near each other: for soft targets and for its space."""
        if self.space is not None:
            self.space.know(codebook)
        if self.settings.soft_targets:
            parts = in_chunks(codebook, codebook)
            nearest = [torch.cdist(part, codebook).topk(2, largest=False).values[:, 1] for part in parts]
            self.soft_codebook = (codebook / torch.cat(nearest).square().mean().sqrt().clamp(min=1e-6)).detach()

    @torch.no_grad()
    def start_from(self, head: Head) -> None:
        """Let what a site's codes tell each other start from that of the decoder that is refined."""
        if self.chain is not None and head.network is not None:
            self.chain.load_state_dict(head.network.state_dict())

    # What the classes build their inputs and outputs from.

    def by_site(self, values: AnyCodes | Pixels) -> Int64[Tensor, "b N c"]:
        """Values with the sites in raster order, the channels of a site together."""
        return by_site(filled(values, self.size) if self.head.ordered else values, self.head.channels)

    def embed(self, values: Int64[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        """Input features of known values."""
        if not self.tabled:
            return self.embedding(values.to(self.position.dtype) * (2 / (self.size - 1)) - 1)
        embedded = self.embedding(values)
        return embedded if self.space is None else embedded + self.space.embed(values[..., 0])

    def context(self, parent: Parent | None) -> Float[Tensor, "#b N d"]:
        """Features of each site before any value is known: where it is, and what lies above it."""
        if self.scale is None:
            return self.position[None]
        if parent is None:
            raise ValueError("this model refines a level: what lies above is needed")
        above = cropped(unfold(self.parent(parent.features), self.scale), self.map_shape)
        share = parent.share.to(self.corruption)[:, None, None] * self.corruption
        return self.position + above.flatten(2).mT + share

    def condition_features(self, conditioning: Conditioning) -> Float[Tensor, "#b 1 d"]:
        """Features of what the images are given; zero where nothing is told or the model reads nothing."""
        features = self.conditions.features(conditioning)
        return self.position.new_zeros(1, 1, self.settings.dim) if features is None else features

    def correct(self, hidden: Float[Tensor, "*n d"], base: Float[Tensor, "*n P"] | None) -> Float[Tensor, "*n P"]:
        """Parameters of sites, in float32 at least."""
        parameters = self.to_logits(hidden)
        if self.space is not None:
            parameters = parameters + self.space.logits(hidden)
        parameters = widened(parameters)
        return parameters if base is None else self.head.correct(widened(base), parameters)

    def site_nats(self, parameters: Float[Tensor, "m P"], values: Int64[Tensor, "m c"]) -> Float[Tensor, "m"]:
        """-ln P of single sites."""
        distribution = self.head(parameters[..., None])
        return -distribution.unchecked_log_prob(values.view(-1, *distribution.shape).to(distribution.dtype))

    def site_loss(self, parameters: Float[Tensor, "m P"], values: Int64[Tensor, "m c"]) -> Float[Tensor, "m"]:
        """What training minimises at single sites: the cross-entropy to soft targets, or :meth:`site_nats`.

        Soft targets (Lee et al. 2022, RQ-Transformer): ``Q(k | z) ~ exp(-|e_k - e_z|² / T)``, T in mean squared
        distances to the nearest other code.
        """
        if self.soft_codebook is None:
            return self.site_nats(parameters, values)
        distances = torch.cdist(self.soft_codebook[values[:, 0]], self.soft_codebook).square()
        targets = (-distances / self.settings.soft_targets).softmax(-1)
        return F.cross_entropy(parameters, targets, reduction="none")

    def site_factors(
        self, parameters: Float[Tensor, "b n P"], sites: Int64[Tensor, "n"], values: Int64[Tensor, "b M"]
    ) -> Iterator[Factor]:
        """The factors of one group: one for codes, one a channel for pixels."""
        return site_factors(self.head, parameters.mT, sites, values)


Model = TypeVar("Model", bound=CodeModel)


class CodeModelDistribution(Distribution, Generic[Model]):
    """What a code model says of some images.

    Args:
        model, batch, conditioning, device, parent: see :meth:`CodeModel.distribution`.
    """

    def __init__(
        self, model: Model, batch: int, conditioning: Conditioning, device: torch.device, parent: Parent | None
    ) -> None:
        self.model, self.conditioning, self.parent = model, conditioning, parent
        of_one_image = model.head(torch.zeros(1, model.head.parameters, *model.map_shape, device=device))
        self.batch, self.device = batch, device
        self.shape, self.size, self.dtype = of_one_image.shape, of_one_image.size, of_one_image.dtype

    def unchecked_log_prob(self, x: AnyCodes | Pixels) -> Nats:
        return self.model.unchecked_log_prob(x, self.conditioning, self.parent)


def by_raster(parent: Parent | None, values: Int64[Tensor, "b N c"]) -> Float[Tensor, "b N P"] | None:
    """The base parameters with the sites in raster order; those of a window decoder given ``values``."""
    if parent is None:
        return None
    base = parent.base.parameters(values) if isinstance(parent.base, Seeing) else parent.base
    return base.flatten(2).mT


def by_group(
    parent: Parent | None, schedule: Schedule, values: Int64[Tensor, "b M"]
) -> Iterator[Float[Tensor, "b n P"] | None]:
    """The base parameters group by group, given what ``values`` hold of the groups before when the next is asked for.

    A window decoder is walked along: its diagonals are the groups of the schedule, whose indices are on the device.
    """
    base = None if parent is None else parent.base
    if isinstance(base, Seeing):
        for _, numbers in base.walk(values):
            yield numbers.mT
        return
    raster = None if base is None else base.flatten(2).mT
    for group in range(len(schedule)):
        yield None if raster is None else raster[:, schedule.sites(group)]


def _own_names(depth: int, attended: bool) -> dict[str, str]:
    """Parameter names of our own for the library's blocks: an attention, maybe one to what is given, a feed-forward."""
    names, layers = {"final_norm.gain": "backbone.final_norm.gamma"}, 2 + attended
    for block in range(depth):
        own, at = f"blocks.{block}", [f"backbone.layers.{layers * block + layer}" for layer in range(layers)]
        for kind, prefix, layer in [("attention", "", at[0]), ("given", "given_", at[1])][: 1 + attended]:
            names |= {f"{own}.{prefix}{name}": f"{layer}.1.to_{name[0]}" for name in ("query", "key", "value")}
            names |= {f"{own}.{kind}_norm.gain": f"{layer}.0.0.gamma", f"{own}.{kind}_out": f"{layer}.1.to_out"}
        names |= {
            f"{own}.feedforward_norm.gain": f"{at[-1]}.0.0.gamma",
            f"{own}.feedforward_in": f"{at[-1]}.1.ff.0.0",
            f"{own}.feedforward_out": f"{at[-1]}.1.ff.2",
        }
    return names
