"""The autoregressive code model: a causal transformer over groups of sites.

``P(z) = prod_k prod_{i in group k} P(z_i | groups before k, label, parent)``. With one site a group it is the usual
chain in raster order. With fewer groups each step draws a whole group of sites, far apart or on a diagonal; the
likelihood stays exact and takes one pass. x-transformers supplies the blocks; ``prefill`` and ``step`` run them with
their key-value cache.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from x_transformers import Decoder
from x_transformers.attend import Attend
from x_transformers.x_transformers import LayerIntermediates

from vqstack.code_model.base import Before, CodeModel, CodeModelDistribution, Parent, by_group, by_raster
from vqstack.code_model.window import Window
from vqstack.conditions import Conditioning
from vqstack.likelihood import Distribution, Factor, Known, by_site
from vqstack.schedule import Schedule
from vqstack.shapes import AnyCodes, Nats, Pixels


class AutoregressiveCodeModel(CodeModel):
    """Exact likelihood in one pass, a sample in K cached steps.

    The sequence holds the sites in the order of the schedule. The input of a site is the value of a site of the group
    before, spread evenly, with its own position and context; the first group reads a begin token, which carries the
    class. A site attends to all inputs of its own group and the groups before, none of which holds a value of its own
    group or a later one (as in parallelized autoregressive generation, Wang et al. 2024).

    Where models share a backbone, their maps may be segments of one sequence: what is said of all groups before holds
    for the places of the segments before, too (see :mod:`vqstack.code_model.unified`).

    Args: see :class:`CodeModel`.
    """

    source: Tensor  # for each place of the sequence after the first group, the site whose value is its input
    order: Tensor  # the sites in the order of the sequence

    def _add_inputs(self) -> None:
        self.begin = nn.Parameter(torch.randn(self.settings.dim) * 0.02)
        self.register_buffer("source", _sources(self.schedule), persistent=False)
        self.register_buffer("order", self.schedule.order, persistent=False)
        if len(self.schedule) < self.sites:
            # The library's cache wants a causal decoder; which places see which is said by the mask, and a step with
            # the cache sees all of its own group.
            for attend in self._attention():
                attend.causal = False

    def _attention(self) -> list[Attend]:
        """Of places to each other."""
        layers = zip(self.backbone.layer_types, self.backbone.layers, strict=True)  # type: ignore[arg-type]
        return [layer[1].attend for kind, layer in layers if kind == "a"]

    def _schedule(self, groups: int) -> Schedule:
        if groups == self.sites:
            return Schedule.raster(self.sites)
        return Schedule.dispersed(self.map_shape, groups, even=self.scale is not None)

    def _window(self) -> Window | None:
        radius = self.settings.window if len(self.schedule) > 1 else 0
        return Window(self.map_shape, radius, self.settings.dim, self.schedule.group) if radius else None

    def _backbone(self, **settings: Any) -> nn.Module:
        return Decoder(**settings)

    def _begin(self, batch: int, conditioning: Conditioning) -> Float[Tensor, "b 1 d"]:
        return self.begin.expand(batch, 1, -1) + self.condition_features(conditioning)

    def _site_parameters(
        self, values: Int64[Tensor, "b N c"], conditioning: Conditioning, parent: Parent | None
    ) -> Float[Tensor, "b N P"]:
        """Parameters of every site given the groups before its own, in one pass; raster order."""
        hidden = self._read(self.sites, values, conditioning, parent)
        return self.outputs(hidden[:, -self.sites :], values, parent)

    def _read(
        self, count: int, values: Int64[Tensor, "b N c"], conditioning: Conditioning, parent: Parent | None, **how: Any
    ) -> Any:
        """What the network puts out, by :meth:`attend`, up to the first ``count`` places of the map."""
        inputs, before = self.inputs(values, conditioning, parent), None if parent is None else parent.before
        inputs, group = _behind(before, inputs[:, :count], self.groups[:count], conditioning)
        return self.attend(inputs, group, **how, **self.conditions.context(conditioning))

    @property
    def groups(self) -> Int64[Tensor, "N"]:
        """The number of the group of each place of the sequence."""
        return self.schedule.group.to(self.order.device)[self.order]

    def inputs(
        self, values: Int64[Tensor, "b N c"], conditioning: Conditioning, parent: Parent | None
    ) -> Float[Tensor, "b N d"]:
        """What the network reads at each place of the sequence: of no value of the place's own group or a later one."""
        begin = self._begin(values.shape[0], conditioning).expand(-1, self.schedule.sizes[0], -1)
        inputs = torch.cat([begin, self.embed(values[:, self.source])], 1) + self.context(parent)[:, self.order]
        return inputs if self.window is None else inputs + self.window(self.embed(values), self.order)

    def attend(self, inputs: Float[Tensor, "b M d"], group: Int64[Tensor, "M"], **options: Any) -> Any:
        """The network over places, each of which sees those of its own group and of groups before.

        Gives features [b, M, d]; with ``return_hiddens`` the cache, too. Other options: what blocks attend to besides.
        """
        if not all(attend.causal for attend in self._attention()):
            options["attn_mask"] = group[:, None] >= group[None, :]
        return self.backbone(inputs, **options)

    def outputs(
        self, hidden: Float[Tensor, "b N d"], values: Int64[Tensor, "b N c"], parent: Parent | None
    ) -> Float[Tensor, "b N P"]:
        """Parameters of every site, in raster order, from what the network puts out at the places of the sequence."""
        raster = torch.empty_like(self.order).scatter_(0, self.order, torch.arange(self.sites, device=hidden.device))
        return self.correct(hidden[:, raster], by_raster(parent, values))

    def logits(
        self, codes: Int64[Tensor, "b N"], conditioning: Conditioning, parent: Parent | None = None
    ) -> Float[Tensor, "b N K"]:
        """Logits of every code given the groups before its own, in one pass."""
        return self._site_parameters(codes[..., None], conditioning, parent)

    def prefill(
        self,
        batch: int,
        conditioning: Conditioning,
        context: Float[Tensor, "#b N d"],
        before: Before | None = None,
    ) -> tuple[Float[Tensor, "b n d"], LayerIntermediates]:
        """What the network puts out for the sites of the first group, and the cache.

        Args:
            batch, conditioning: number of images, and what they are given.
            context: of every site, see :meth:`CodeModel.context`.
            before: what stands before the map in its sequence; read in one pass.
        """
        first = self.schedule.sizes[0]
        inputs = self._begin(batch, conditioning) + context[:, self.order[:first]]
        given = self.conditions.context(conditioning)
        if before is None:
            return self.backbone(inputs, return_hiddens=True, **given)
        inputs, group = _behind(before, inputs.expand(batch, -1, -1), self.groups[:first], conditioning)
        hidden, cache = self.attend(inputs, group, return_hiddens=True, **given)
        return hidden[:, -first:], cache

    def read_up_to(
        self, group: int, values: Int64[Tensor, "b N c"], conditioning: Conditioning, parent: Parent | None
    ) -> tuple[Float[Tensor, "b n d"], LayerIntermediates]:
        """What :meth:`prefill` and a step for each group up to this one give, in one pass: all before it is known."""
        size = self.schedule.sizes[group]
        count = self.schedule.starts[group] + size
        hidden, cache = self._read(count, values, conditioning, parent, return_hiddens=True)
        return hidden[:, -size:], cache

    def step(
        self,
        group: int,
        values: Int64[Tensor, "b N c"],
        context: Float[Tensor, "#b N d"],
        cache: LayerIntermediates,
        given: Mapping[str, Tensor] | None = None,
    ) -> tuple[Float[Tensor, "b n d"], LayerIntermediates]:
        """The same for a later group.

        Args:
            group: its number, at least 1.
            values: of all sites; only those of the groups before are read.
            context: of every site.
            cache: of the groups before.
            given: what blocks attend to besides, see :meth:`vqstack.conditions.Conditions.context`.
        """
        size, start = self.schedule.sizes[group], self.schedule.starts[group]
        sites, first = self.order[start : start + size], start - self.schedule.sizes[0]
        inputs = self.embed(values[:, self.source[first : first + size]]) + context[:, sites]
        if self.window is not None:
            inputs = inputs + self.window.of_few(lambda near: self.embed(values[:, near]), sites)
        return self.backbone(inputs, cache=cache, cache_age=inputs.shape[1], return_hiddens=True, **(given or {}))

    def unchecked_log_prob(
        self, values: AnyCodes | Pixels, conditioning: Conditioning, parent: Parent | None = None
    ) -> Nats:
        return self._over_map(self._site_parameters(self.by_site(values), conditioning, parent)).unchecked_log_prob(
            values
        )

    def _over_map(self, parameters: Float[Tensor, "b N P"]) -> Distribution:
        return self.head(parameters.mT.unflatten(2, self.map_shape))

    def _training_nats(
        self, values: AnyCodes | Pixels, conditioning: Conditioning, parent: Parent | None
    ) -> tuple[Tensor, Nats]:
        return self.score(self._site_parameters(self.by_site(values), conditioning, parent), values)

    def score(self, parameters: Float[Tensor, "b N P"], values: AnyCodes | Pixels) -> tuple[Tensor, Nats]:
        """Of parameters of every site the loss, nats per image averaged over the batch, and -ln P of each image."""
        if self.soft_codebook is None or not self.training:
            nats = -self._over_map(parameters).unchecked_log_prob(values)
            return nats.mean(), nats
        flat, parameters = self.by_site(values).flatten(0, 1), parameters.flatten(0, 1)
        nats = self.site_nats(parameters.detach(), flat).view(len(values), -1).sum(1)
        return self.site_loss(parameters, flat).sum() / len(values), nats

    def _distribution(
        self, batch: int, conditioning: Conditioning, device: torch.device, parent: Parent | None, known: Known | None
    ) -> "Autoregressive":
        return Autoregressive(self, batch, conditioning, device, parent)


class Autoregressive(CodeModelDistribution[AutoregressiveCodeModel]):
    """K factors (times the channels of a pixel); walking them runs the cached network."""

    @torch.no_grad()
    def factors(self, values: Int64[Tensor, "b M"]) -> Iterator[Factor]:
        model = self.model
        context, given = model.context(self.parent), model.conditions.context(self.conditioning)
        before = None if self.parent is None else self.parent.before
        schedule = model.schedule.on(self.device)
        drawn = self._drawn(schedule)
        first, last = min(drawn, default=len(schedule)), max(drawn, default=-1)
        for group, base in enumerate(by_group(self.parent, schedule, values)):
            if not first <= group <= last:
                continue
            if group == 0:
                hidden, cache = model.prefill(self.batch, self.conditioning, context, before)
            elif group == first:
                hidden, cache = model.read_up_to(group, model.by_site(values), self.conditioning, self.parent)
            else:
                hidden, cache = model.step(group, model.by_site(values), context, cache, given)
            if group in drawn:
                parameters = model.correct(hidden, base)
                yield from model.site_factors(parameters, schedule.sites(group), values)

    def _drawn(self, schedule: Schedule) -> set[int]:
        """The groups of which some site is not fixed."""
        if self.fixed is None:
            return set(range(len(schedule)))
        fixed = by_site(self.fixed[None], self.model.head.channels).all(-1)[0]
        return {group for group in range(len(schedule)) if not fixed[schedule.sites(group)].all()}


def _behind(
    before: Before | None, inputs: Float[Tensor, "b m d"], group: Int64[Tensor, "m"], conditioning: Conditioning
) -> tuple[Float[Tensor, "b M d"], Int64[Tensor, "M"]]:
    """Inputs and groups of the first places of a map, behind those of what stands before it in its sequence."""
    if before is None:
        return inputs, group
    return torch.cat([before.inputs(conditioning), inputs], 1), torch.cat([before.group, group + before.group[-1] + 1])


def _sources(schedule: Schedule) -> Int64[Tensor, "n"]:
    """For each site after the first group, in order, the site of the group before whose value it reads.

    Where groups do not shrink every value of a group is read by the next one.
    """
    read = []
    for group in range(1, len(schedule)):
        before, size = schedule.sites(group - 1), schedule.sizes[group]
        read.append(before[torch.arange(size) * len(before) // size])
    return torch.cat(read) if read else torch.empty(0, dtype=torch.int64)
