"""One transformer for the prior and the refiners of codes: the maps as segments of one sequence, the top one first.

    begin + label, sites of z_L | begin + label, sites of z_{L-1} | … | begin + label, sites of z_1

Each segment is an :class:`AutoregressiveCodeModel` with embeddings, positions (which also tell the levels apart) and
output of its own. The top one is the prior. Each other one is a refiner: it reads what the decoder above says of its
sites, and starts as that decoder. One backbone, stored once with the prior, receives the gradients of all of them.

A place sees the places of its own group and of all groups before it, in its segment and in those above. No input of a
segment holds the values of the segment's last group; the segment below reads them as the codes above its sites. So

    P(z_1 … z_L | label) = P(z_L | label) P(z_{L-1} | z_L, label) P(z_{L-2} | z_{L-1}, z_L, label) …

This is the chain rule: the product is normalised over all maps, those included that are not encodings of each other,
since each row is computed from the very maps above that were drawn, coded, or are scored. Where z_l alone is given, as
for variations, its encodings stand for the maps above. They are functions of z_l, so that the rows below are normalised
distributions given z_l, and those of the joint where the maps above are encodings.

To draw or to code a map, all maps above it are read in one pass that fills the cache; then each group takes one cached
step. The passes, one for each level below the top, are all that is computed twice. No state is carried from one map to
the next, so that many images can be coded level by level in bounded memory.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqstack.code_model.autoregressive import AutoregressiveCodeModel
from vqstack.code_model.base import Before, Parent
from vqstack.conditions import Conditioning, Conditions
from vqstack.nets import store_once
from vqstack.shapes import AnyCodes, Objective

SHARED = ("blocks.", "final_norm.")
"""Names of the backbone's parameters begin so."""


class UnifiedCodeModel(nn.Module):
    """The segments, for training all of them at once.

    Args:
        segments: of z_L, …, z_1, which share a backbone.
    """

    def __init__(self, segments: Sequence[AutoregressiveCodeModel]) -> None:
        super().__init__()
        self.segments: Sequence[AutoregressiveCodeModel] = nn.ModuleList(segments)  # type: ignore[assignment]
        store_once(self, {f"segments.{i}.{s}": f"segments.0.{s}" for i in range(1, len(segments)) for s in SHARED})

    @property
    def classes(self) -> int:
        """Number of class labels that it is conditional on; 0: none."""
        return self.segments[0].classes

    @property
    def conditions(self) -> Conditions:
        """What each segment reads."""
        return self.segments[0].conditions

    @property
    def networks(self) -> list[nn.Module]:
        """The plain network, which can be compiled."""
        return self.segments[0].networks

    def forward(self, *tensors: Tensor) -> Objective:
        """Nats per site, over the sites of all maps. Metrics: nats per image, all and by row of the ledger.

        Args:
            tensors: what the images are given, in the order of ``conditions``; the maps z_L … z_1; then for each of
                z_{L-1} … z_1 the two tensors of its :class:`Parent`.
        """
        segments = list(self.segments)
        count, top = len(segments), segments[0]
        conditioning, others = self.conditions.named(tensors)
        maps, seen = others[:count], others[count:]
        genuine = torch.zeros(len(maps[0]), device=maps[0].device)
        pairs = zip(seen[::2], seen[1::2], strict=True)
        parents = [None, *(Parent(base, features, genuine) for base, features in pairs)]
        before = before_map(segments, maps, parents)
        hidden = top.attend(before.inputs(top.hide(conditioning)), before.group).split([s.sites for s in segments], 1)
        scores = [
            segment.score(segment.outputs(places, segment.by_site(z), parent), z)
            for segment, places, z, parent in zip(segments, hidden, maps, parents, strict=True)
        ]
        rows = ["prior", *(f"level-{number}" for number in range(count, 1, -1))]
        nats = {row: nats.mean().detach() for row, (_, nats) in zip(rows, scores, strict=True)}
        loss = torch.stack([loss for loss, _ in scores]).sum() / sum(s.sites for s in segments)
        return Objective(loss, {"nats": torch.stack(list(nats.values())).sum(), **nats})


def before_map(
    segments: Sequence[AutoregressiveCodeModel], maps: Sequence[AnyCodes], parents: Sequence[Parent | None]
) -> Before:
    """The places of the maps z_L, z_{L-1}, …, each with what it sees of the map above."""
    groups: list[Tensor] = []
    for segment in segments[: len(maps)]:
        groups.append(segment.groups + (groups[-1][-1] + 1 if groups else 0))

    def inputs(conditioning: Conditioning) -> Tensor:
        read = zip(segments, maps, parents, strict=False)
        return torch.cat([segment.inputs(segment.by_site(z), conditioning, parent) for segment, z, parent in read], 1)

    return Before(inputs, torch.cat(groups))
