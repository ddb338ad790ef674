"""Conditions: modules that turn what an image is given besides the map above it into features of a transformer.

A class is a variable: its probability is a row of the ledger (:class:`vqstack.terms.LabelTerm`). Floats, such as what
a text encoder makes of a caption, are merely given: they have no row, and a total says what it is given.
"""

from abc import ABC, abstractmethod
from collections.abc import ItemsView, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from vqstack.checks import check_floats, check_map
from vqstack.errors import InputError
from vqstack.nets import build_network
from vqstack.registry import Registry
from vqstack.settings import Settings
from vqstack.shapes import Labels, by_axis
from vqstack.texts import TextSettings

CONDITION_NAMES = {"label_embedding": "conditions.label.embedding"}
"""Names of parameters that are older than conditions: ours to the module's (see :func:`vqstack.nets.rename_state`)."""

NO_LABEL = -1
"""Stands for a label that is not told; floats that are not told are NaN."""
GIVEN = "condition"
"""Name of what is merely given, among the conditions of a transformer and the values of a hierarchy's variables."""

Conditioning: TypeAlias = Mapping[str, Tensor]
"""What images are given, one row an image, by the name of the condition; a row may stand for nothing told."""


class Condition(nn.Module, ABC):
    """Turns what each image is given into features that a transformer reads beside its inputs.

    Attributes:
        needs: what it is and what to give, for the line that asks for it.
    """

    needs: str
    attended = False
    """Whether every block of the transformer attends to the features (cross-attention); else they are added."""

    @abstractmethod
    def forward(self, values: Tensor) -> Float[Tensor, "b n d"]:
        """Features, one vector where they are added; zeros where nothing is told."""

    @abstractmethod
    def told(self, values: Tensor) -> Bool[Tensor, "b"]:
        """Of which images anything is told."""

    @abstractmethod
    def reset(self) -> None:
        """Draw the weights anew: features as large as what else a site reads, which they would drown otherwise."""

    @abstractmethod
    def nothing(self, num: int, device: torch.device) -> Tensor:
        """Values that tell nothing, of ``num`` images."""

    @abstractmethod
    def check(self, values: Tensor, num: int, device: torch.device, look: bool) -> None:
        """InputError unless these are values of ``num`` images, some of which may tell nothing, on ``device``.

        ``look``: for numbers out of range, too, as :func:`check_map` does.
        """


class ClassCondition(Condition):
    """A learned vector for each class.

    Args:
        classes: count.
        dim: features.
    """

    needs = "the class: give labels"

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, dim)

    def forward(self, values: Labels) -> Float[Tensor, "b 1 d"]:
        return (self.embedding(values.clamp(min=0)) * self.told(values)[:, None])[:, None]

    def told(self, values: Labels) -> Bool[Tensor, "b"]:
        return values != NO_LABEL

    def reset(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02)

    def nothing(self, num: int, device: torch.device) -> Labels:
        return torch.full((num,), NO_LABEL, device=device)

    def check(self, values: Tensor, num: int, device: torch.device, look: bool) -> None:
        check_map(values, "labels", (), self.embedding.num_embeddings, device, num=num, least=NO_LABEL, look=look)


class ReaderSettings(Settings):
    """What reads the floats that are given with each image."""

    kind: str = Field(
        default="",
        max_length=80,
        description="vector, attention (of every block to a sequence of vectors), sequence (one vector made of a "
        "sequence), or the name under which a class of yours is registered (register_condition); empty: vector or "
        "attention, as the floats are, with unified sequence.",
    )
    options: dict[str, int | float | str | bool] = Field(
        default={}, description="What a class of yours is given beside shape and dim; any unit."
    )


class ConditionSettings(ReaderSettings):
    """Floats that are given with each image, and what reads them."""

    name: str = Field(description="What they are, for messages: the name of their column.")
    shape: tuple[int, ...] = Field(
        min_length=1, max_length=2, description="Of one image's floats: count of a vector, or of vectors and of each."
    )
    text: TextSettings | None = Field(default=None, description="What made them of texts, where that is known.")


class GivenCondition(Condition, ABC):
    """Floats [b, \\*shape] that are merely given, each component in units of its deviation over the training images.

    Args:
        shape: of one image's floats, its last axis that of the components.
        dim: features.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, shape: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.shape, self.dim = shape, dim
        self.register_buffer("mean", torch.zeros(shape[-1]))
        self.register_buffer("deviation", torch.ones(shape[-1]))

    @abstractmethod
    def features(self, values: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *d"]:
        """Of standardised values."""

    @torch.no_grad()
    def know(self, values: Float[Tensor, "n *shape"]) -> None:
        """Tell the module, before training, mean and deviation of each component; a constant one stays as it is."""
        parts = values.flatten(0, -2).split(2**16)
        count = sum(map(len, parts))
        mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / count
        deviation = (torch.stack([(part - mean).square().sum(0) for part in parts]).sum(0) / count).sqrt()
        constant = deviation <= 1e-6 * mean.abs()
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(constant, 1.0, deviation))

    def forward(self, values: Float[Tensor, "b *shape"]) -> Float[Tensor, "b n d"]:
        told = self.told(values)
        readable = torch.where(told.view(-1, *[1] * len(self.shape)), values, self.mean)
        features = self.features((readable - self.mean) / self.deviation).view(values.shape[0], -1, self.dim)
        return features * told[:, None, None]

    def told(self, values: Float[Tensor, "b *shape"]) -> Bool[Tensor, "b"]:
        return ~values.flatten(1).isnan().any(1)

    def nothing(self, num: int, device: torch.device) -> Float[Tensor, "b *shape"]:
        return torch.full((num, *self.shape), torch.nan, device=device)

    def check(self, values: Tensor, num: int, device: torch.device, look: bool) -> None:
        check_floats(values, "condition", (num, *self.shape), device)


class VectorCondition(GivenCondition):
    """``W x + b`` of a standardised vector x."""

    def __init__(self, shape: tuple[int, ...], dim: int) -> None:
        super().__init__(shape, dim)
        if len(shape) != 1:
            raise InputError(f"condition.kind: vector reads {shape} floats: choose attention, or sequence")
        self.linear = nn.Linear(shape[0], dim)

    def reset(self) -> None:
        nn.init.normal_(self.linear.weight, std=0.02 / self.shape[0] ** 0.5)
        nn.init.normal_(self.linear.bias, std=0.02)  # what is average is told, too

    def features(self, values: Float[Tensor, "b v"]) -> Float[Tensor, "b d"]:
        return self.linear(values)


class AttentionCondition(GivenCondition):
    """``W x_n + p_n`` of standardised vectors x_n: what every block of the transformer attends to.

    p_n, a learned vector for each place of the sequence, lets the order of the vectors matter.
    """

    attended = True

    def __init__(self, shape: tuple[int, ...], dim: int) -> None:
        super().__init__(shape, dim)
        _check_sequence(shape)
        self.linear = nn.Linear(shape[1], dim, bias=False)
        self.place = nn.Parameter(torch.zeros(shape[0], dim))

    def reset(self) -> None:  # as large as what blocks see of sites, which is normalised
        nn.init.normal_(self.linear.weight, std=self.shape[1] ** -0.5)
        nn.init.normal_(self.place, std=0.5)

    def features(self, values: Float[Tensor, "b n v"]) -> Float[Tensor, "b n d"]:
        return self.linear(values) + self.place


class SequenceCondition(GivenCondition):
    """``sum_n softmax_n(q x_n) g_n (W x_n + b)`` of standardised vectors x_n: attention by one learned query q.

    g_n, a learned number for each place of the sequence and each feature, lets the order of the vectors matter.
    """

    def __init__(self, shape: tuple[int, ...], dim: int) -> None:
        super().__init__(shape, dim)
        _check_sequence(shape)
        self.query = nn.Parameter(torch.zeros(shape[1]))
        self.place = nn.Parameter(torch.ones(shape[0], dim))
        self.linear = nn.Linear(shape[1], dim)

    def reset(self) -> None:
        nn.init.normal_(self.query, std=0.02)
        nn.init.normal_(self.linear.weight, std=0.02 / self.shape[1] ** 0.5)
        nn.init.normal_(self.linear.bias, std=0.02)
        nn.init.normal_(self.place, mean=1.0, std=0.5)

    def features(self, values: Float[Tensor, "b n v"]) -> Float[Tensor, "b d"]:
        weights = (values @ self.query).softmax(1)
        return (weights[..., None] * self.place * self.linear(values)).sum(1)


def _check_sequence(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise InputError(
            f"condition.kind: a sequence of vectors is read, and {by_axis(shape)} floats are one: choose vector"
        )


CONDITIONS = Registry[Any](
    "condition", {"vector": VectorCondition, "attention": AttentionCondition, "sequence": SequenceCondition}
)
register_condition = CONDITIONS.register
"""Let ``condition.kind`` name a class of :class:`GivenCondition`, built as ``condition(shape, dim, **options)``."""


def build_condition(settings: ConditionSettings, dim: int) -> GivenCondition:
    """What reads floats that are given; InputError for a kind that is not registered: no artefact brings code."""
    kind = CONDITIONS.find(settings.kind)
    condition = build_network(kind, settings.shape, dim, what="condition", options=settings.options)
    condition.needs = f"{settings.name}: give condition, {by_axis(settings.shape)} floats for each image"
    return condition


class Conditions(nn.ModuleDict):
    """All that a transformer is conditional on, by name; features are added to its inputs, or attended to."""

    def items(self) -> ItemsView[str, Condition]:
        return super().items()  # type: ignore[return-value]

    def features(self, conditioning: Conditioning) -> Float[Tensor, "b 1 d"] | None:
        """Of what each image is given; none where the transformer reads nothing, however much is given."""
        parts = [condition(conditioning[name]) for name, condition in self.items() if not condition.attended]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] if parts else None

    @property
    def attended(self) -> bool:
        """Whether blocks attend to any of it."""
        return any(condition.attended for _, condition in self.items())

    def context(self, conditioning: Conditioning) -> dict[str, Tensor]:
        """What the blocks attend to and, where nothing is told, do not; by the names of the library; maybe nothing."""
        parts = [(condition(value), condition.told(value)) for condition, value in self._attended(conditioning)]
        if not parts:
            return {}
        seen = [told[:, None].expand(-1, vectors.shape[1]) for vectors, told in parts]
        return {"context": torch.cat([vectors for vectors, _ in parts], 1), "context_mask": torch.cat(seen, 1)}

    def _attended(self, conditioning: Conditioning) -> list[tuple[Condition, Tensor]]:
        return [(condition, conditioning[name]) for name, condition in self.items() if condition.attended]

    def nothing(self, num: int, device: torch.device) -> Conditioning:
        """What tells nothing of ``num`` images."""
        return {name: condition.nothing(num, device) for name, condition in self.items()}

    def hide(self, conditioning: Conditioning, which: Bool[Tensor, "b"]) -> Conditioning:
        """The same, nothing told of the images ``which``."""
        nothing = self.nothing(len(which), which.device)
        return {n: torch.where(which.view(-1, *[1] * (v.ndim - 1)), nothing[n], v) for n, v in conditioning.items()}

    def named(self, tensors: Sequence[Tensor]) -> tuple[Conditioning, Sequence[Tensor]]:
        """The first tensors, one for each condition in order, by name; and the others."""
        return dict(zip(self, tensors, strict=False)), tensors[len(self) :]

    def check(self, conditioning: Conditioning, num: int, device: torch.device, look: bool = True) -> None:
        """InputError unless what is given is what is read, and fits; see :meth:`Condition.check`."""
        if not isinstance(conditioning, Mapping):
            raise InputError(
                f"conditioning: {type(conditioning).__name__} where a mapping belongs: give values by name"
            )
        for name, condition in self.items():
            if name not in conditioning:
                raise InputError(f"this model is conditional on {condition.needs}")
            condition.check(conditioning[name], num, device, look)
        for name in conditioning.keys() - self.keys():
            what = "labels: this model knows no classes" if name == "label" else f"{name}: this model is not given it"
            raise InputError(f"{what}: leave them out")
