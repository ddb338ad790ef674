"""Conditions: modules that turn what an image is given besides the map above it into features of a transformer.

A class is a variable: its probability is a row of the ledger (:class:`vqstack.terms.LabelTerm`). Everything else is
merely given: it has no row, and a total says what it is given.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, ItemsView, Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vqstack.checks import check_map
from vqstack.errors import InputError
from vqstack.shapes import Labels

CONDITION_NAMES = {"label_embedding": "conditions.label.embedding"}
"""Names of parameters that are older than conditions: ours to the module's (see :func:`vqstack.nets.rename_state`)."""

NO_LABEL = -1
"""Stands for a label that is not told."""

Conditioning: TypeAlias = Mapping[str, Tensor]
"""What images are given, one row an image, by the name of the condition; a row may stand for nothing told."""


class Condition(nn.Module, ABC):
    """Turns what each image is given into features that a transformer reads beside its inputs.

    Attributes:
        needs: what it is and what to give, for the line that asks for it.
    """

    needs: str

    @abstractmethod
    def forward(self, values: Tensor) -> Float[Tensor, "b 1 d"]:
        """Features; zeros where nothing is told."""

    @abstractmethod
    def reset(self) -> None:
        """Draw the weights anew: features as large as what else a site reads, which they would drown otherwise."""

    @abstractmethod
    def nothing(self, num: int, device: torch.device) -> Tensor:
        """Values that tell nothing, of ``num`` images."""

    @abstractmethod
    def check(self, values: Tensor, num: int, device: torch.device, by: Callable[..., None]) -> None:
        """InputError unless these are values of ``num`` images, some of which may tell nothing, on ``device``.

        Numbers are looked at as far as ``by``, :func:`check_map` or :func:`check_kind`, does.
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
        told = (values != NO_LABEL)[:, None]
        return (self.embedding(values.clamp(min=0)) * told)[:, None]

    def reset(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02)

    def nothing(self, num: int, device: torch.device) -> Labels:
        return torch.full((num,), NO_LABEL, device=device)

    def check(self, values: Tensor, num: int, device: torch.device, by: Callable[..., None]) -> None:
        by(values, "labels", (), self.embedding.num_embeddings, device, num=num, least=NO_LABEL)


class Conditions(nn.ModuleDict):
    """All that a transformer is conditional on, by name; their features are added."""

    def items(self) -> ItemsView[str, Condition]:
        return super().items()  # type: ignore[return-value]

    def features(self, conditioning: Conditioning) -> Float[Tensor, "b 1 d"] | None:
        """Of what each image is given; none where the transformer reads nothing, however much is given."""
        parts = [condition(conditioning[name]) for name, condition in self.items()]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] if parts else None

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

    def check(
        self, conditioning: Conditioning, num: int, device: torch.device, by: Callable[..., None] = check_map
    ) -> None:
        """InputError unless what is given is what is read, and fits; see :meth:`Condition.check`."""
        if not isinstance(conditioning, Mapping):
            raise InputError(
                f"conditioning: {type(conditioning).__name__} where a mapping belongs: give values by name"
            )
        for name, condition in self.items():
            if name not in conditioning:
                raise InputError(f"this model is conditional on {condition.needs}")
            condition.check(conditioning[name], num, device, by)
        for name in conditioning.keys() - self.keys():
            what = "labels: this model knows no classes" if name == "label" else f"{name}: this model is not given it"
            raise InputError(f"{what}: leave them out")
