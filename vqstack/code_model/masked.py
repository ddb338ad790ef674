"""The masked code model: an order-agnostic transformer, made a normalised model by a schedule.

The network sees the values of some sites, in any pattern, and predicts each hidden one. A schedule of K groups makes it
a chain: ``P(z) = prod_k prod_{i in group k} P(z_i | groups before k, label, parent)``; likelihood and samples take K
passes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from x_transformers import Encoder

from vqstack.code_model.base import CodeModel, CodeModelDistribution, Parent, by_group, by_raster
from vqstack.code_model.window import Window
from vqstack.conditions import Conditioning
from vqstack.likelihood import Draw, Factor, Known, by_site, draw_values
from vqstack.schedule import Schedule
from vqstack.shapes import AnyCodes, Nats, Noise, Pixels, finest


class MaskedCodeModel(CodeModel):
    """A bidirectional transformer over known and hidden sites.

    Args: see :class:`CodeModel`.
    """

    def _add_inputs(self) -> None:
        self.hidden = nn.Parameter(torch.randn(self.settings.dim) * 0.02)  # read at a site whose value is not known

    def _schedule(self, groups: int) -> Schedule:
        return Schedule.dispersed(self.map_shape, groups, even=self.scale is not None)

    def _window(self) -> Window | None:
        radius = self.settings.window if self.sites > 1 else 0
        return Window(self.map_shape, radius, self.settings.dim) if radius else None

    def _backbone(self, **settings: Any) -> nn.Module:
        return Encoder(**settings)

    def predict(
        self,
        values: Int64[Tensor, "b N c"],
        known: Bool[Tensor, "b N"],
        conditioning: Conditioning,
        parent: Parent | None = None,
    ) -> Float[Tensor, "b N d"]:
        """What the network puts out for every site, given the values where they are known."""
        inputs = self.visible(values, known) + self.context(parent)
        return self.backbone(inputs + self.condition_features(conditioning), **self.conditions.context(conditioning))

    def inside(self, values: AnyCodes | Pixels) -> Bool[Tensor, "b N"]:
        """Which sites are no padding."""
        return by_site(values, self.head.channels)[..., 0] >= 0

    def visible(self, values: Int64[Tensor, "b N c"], known: Bool[Tensor, "b N"]) -> Float[Tensor, "b N d"]:
        """What the network reads of the values that are known."""
        embedded = self.embed(values)
        inputs = torch.where(known[..., None], embedded, self.hidden)
        if self.window is None:
            return inputs
        return inputs + self.window(embedded, torch.arange(self.sites, device=known.device), known)

    def unchecked_log_prob(
        self, values: AnyCodes | Pixels, conditioning: Conditioning, parent: Parent | None = None
    ) -> Nats:
        """ln P under the schedule, exact in K passes."""
        flat, inside = self.by_site(values), self.inside(values)
        base = by_raster(parent, flat)
        total, schedule = torch.zeros(flat.shape[0], device=flat.device), self.schedule.on(flat.device)
        for group in range(len(schedule)):
            sites = schedule.sites(group)
            known = schedule.before(torch.full((flat.shape[0],), group, device=flat.device))
            hidden = self.predict(flat, known, conditioning, parent)[:, sites]
            parameters = self.correct(hidden, None if base is None else base[:, sites])
            nats = self.site_nats(parameters.flatten(0, 1), flat[:, sites].flatten(0, 1)).view(flat.shape[0], -1)
            total = total - nats.where(inside[:, sites], 0).sum(1)
        return total

    def random_order_nats(
        self, values: AnyCodes | Pixels, conditioning: Conditioning, parent: Parent | None = None
    ) -> Nats:
        """One-pass estimates of -ln P in a random order, one site at a time; their mean is the mean over all orders.

        The number of hidden sites is uniform on 1 … N; each of them is weighed by N over that number. The standard
        error of a mean over images is the deviation of these values over the root of their number.
        """
        self.check(values, conditioning)
        known, weights = _random_masks(len(values), self.sites, values.device)
        return self._hidden_nats(values, conditioning, parent, ~known, known, weights)[1]

    def _training_nats(
        self, values: AnyCodes | Pixels, conditioning: Conditioning, parent: Parent | None
    ) -> tuple[Tensor, Nats]:
        """One pass; see ``settings.masks``. Outside training always the schedule's, at groups spread over the batch.

        One group k of each image is scored and weighed by K, which is an unbiased estimate of the schedule's -ln P. In
        evaluation the groups are the same every time, so that differences between weights are not those of the draw.
        """
        count, device = len(values), values.device
        if self.training and self.settings.masks == "random":
            known, weights = _random_masks(count, self.sites, device)
            return self._hidden_nats(values, conditioning, parent, ~known, known, weights)
        groups = len(self.schedule)
        if self.training:
            k = torch.randint(groups, (count,), device=device)
        else:
            k = (torch.arange(count, device=device) * 2 + 1) * groups // (2 * count)
        schedule = self.schedule.on(device)
        known, scored = schedule.before(k), schedule.group == k[:, None]
        weights = torch.full((count,), float(groups)).to(device)
        return self._hidden_nats(values, conditioning, parent, scored, known, weights)

    def _hidden_nats(
        self,
        values: AnyCodes | Pixels,
        conditioning: Conditioning,
        parent: Parent | None,
        scored: Bool[Tensor, "b N"],
        known: Bool[Tensor, "b N"],
        weights: Float[Tensor, "b"],
    ) -> tuple[Tensor, Nats]:
        """Loss, and weighted nats of the scored sites of each image; only those pass through the last layer."""
        flat, scored = self.by_site(values), scored & self.inside(values)
        base = by_raster(parent, flat)
        hidden = self.predict(flat, known, conditioning, parent)[scored]
        parameters = self.correct(hidden, None if base is None else base[scored])
        image = scored.nonzero()[:, 0]
        nats = self.site_nats(parameters, flat[scored])
        loss = nats if self.soft_codebook is None or not self.training else self.site_loss(parameters, flat[scored])
        per_image = torch.zeros(len(flat), device=flat.device).index_add(0, image, nats * weights[image])
        return (loss * weights[image]).sum() / len(flat), per_image.detach()

    def _distribution(
        self, batch: int, conditioning: Conditioning, device: torch.device, parent: Parent | None, known: Known | None
    ) -> "Masked":
        return Masked(self, batch, conditioning, device, parent, known)


class Masked(CodeModelDistribution[MaskedCodeModel]):
    """K factors (times the channels of a pixel); each costs one pass of the network.

    Sites that are given from the start (``known``) are seen by every group: the model's own conditional. A pixel counts
    as seen when all of its channels are given; the channels of others keep what is given when their turn comes.
    """

    own_order = True

    def __init__(
        self,
        model: MaskedCodeModel,
        batch: int,
        conditioning: Conditioning,
        device: torch.device,
        parent: Parent | None,
        known: Known | None,
    ) -> None:
        super().__init__(model, batch, conditioning, device, parent)
        channels = model.head.channels
        self.told = torch.zeros(batch, model.sites, channels, dtype=torch.bool, device=device)
        self.values = torch.zeros(batch, model.sites, channels, dtype=torch.int64, device=device)
        if known is not None:
            self.values = model.by_site(known.values.to(device))
            self.told = model.by_site(known.given.to(device).long()).bool()
        self.given = self.told.all(-1)

    @torch.no_grad()
    def factors(self, values: Int64[Tensor, "b M"]) -> Iterator[Factor]:
        model, schedule = self.model, self.model.schedule.on(self.device)
        for group, base in enumerate(by_group(self.parent, schedule, values)):
            before = schedule.before(torch.full((self.batch,), group, device=self.device))
            seen = torch.where(self.given[..., None], self.values, model.by_site(values))
            sites = schedule.sites(group)
            hidden = model.predict(seen, before | self.given, self.conditioning, self.parent)[:, sites]
            parameters = model.correct(hidden, base)
            yield from model.site_factors(parameters, sites, values)

    def sample(self, noise: Noise, draw: Draw = Draw()) -> AnyCodes | Pixels:
        """By the schedule; with ``draw.confidence`` as :meth:`sample_by_confidence` does."""
        return self.sample_by_confidence(noise, draw) if draw.confidence else super().sample(noise, draw)

    @torch.no_grad()
    def sample_by_confidence(self, noise: Noise, draw: Draw = Draw()) -> AnyCodes | Pixels:
        """MaskGIT's sampler (Chang et al. 2022): each pass draws all hidden sites and keeps the most probable draws.

        As many sites are kept in pass k as group k of the schedule has. Which ones depends on what was drawn, so these
        samples do not follow the distribution that ``log_prob`` scores.
        """
        self.check_noise(noise)
        model, base = self.model, by_raster(self.parent, self.values)
        channels = model.head.channels
        noise = noise.to(self.device, finest(self.device))
        everywhere = torch.arange(model.sites, device=self.device)
        values, known = self.values.clone(), self.given.clone()
        told, given = (rearrange(x, "b n c -> b (c n)") for x in (self.told, self.values))
        for group, size in enumerate(model.schedule.sizes):
            parameters = model.correct(model.predict(values, known, self.conditioning, self.parent), base)
            drawn = torch.zeros(self.batch, channels * model.sites, dtype=torch.int64, device=self.device)
            confidence = torch.zeros(self.batch, channels * model.sites, device=self.device)
            for factor in model.site_factors(parameters, everywhere, drawn):
                chosen = draw_values(factor.log_probs, noise[:, factor.sites], draw)
                chosen = torch.where(told[:, factor.sites], given[:, factor.sites], chosen)
                drawn[:, factor.sites] = chosen
                confidence[:, factor.sites] = factor.log_probs.gather(-1, chosen[..., None]).squeeze(-1)
            last = group + 1 == len(model.schedule)
            score = rearrange(confidence, "b (c n) -> b n c", c=channels).sum(-1).masked_fill(known, -torch.inf)
            rank = score.argsort(dim=-1, descending=True, stable=True).argsort(-1)
            kept = ~known & ((rank < size) | last)
            values = torch.where(kept[..., None], model.by_site(drawn), values)
            known = known | kept
        return rearrange(values, "b n c -> b (c n)").view(self.batch, *self.shape).to(self.dtype)


def _random_masks(count: int, sites: int, device: torch.device) -> tuple[Bool[Tensor, "b N"], Float[Tensor, "b"]]:
    """Which sites are known, hidden ones numbering 1 … N with equal chance, and N over the number of hidden ones."""
    hidden = torch.randint(1, sites + 1, (count,), device=device)
    rank = torch.rand(count, sites, device=device).argsort(-1).argsort(-1)
    return rank >= hidden[:, None], sites / hidden.float()
