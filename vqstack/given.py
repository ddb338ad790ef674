"""What a model is given beside the image: its class and floats; what of them it reads, and what it refuses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqstack.checks import check_floats, check_map
from vqstack.code_model import CodeModel
from vqstack.conditions import GIVEN, ConditionSettings
from vqstack.errors import InputError
from vqstack.shapes import Floats, Labels, by_axis


class Given(nn.Module):
    """The side of a model to which labels and conditions are given."""

    classes: int
    condition: ConditionSettings | None
    label_probs: Tensor

    @property
    def parts(self) -> Sequence[CodeModel]:
        """What may read them."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.label_probs.device

    def labels_read(self, labels: Labels | None) -> Labels | None:
        """The labels of a data set where the model reads any, on its device; none where it knows no classes."""
        return None if labels is None or not self.classes else labels.to(self.device)

    def condition_read(self, condition: Floats | None) -> Floats | None:
        """The floats that a data set gives where the model reads any, on its device."""
        return None if condition is None or self.condition is None else condition.to(self.device)

    @torch.no_grad()
    def count_labels(self, labels: Labels) -> None:
        """Set P(label) to the training frequencies, one count added to each class so that none is impossible."""
        check_map(labels, "labels", (), self.classes, None)
        counts = torch.bincount(labels, minlength=self.classes).to(self.label_probs) + 1
        self.label_probs.copy_(counts / counts.sum())

    def know_condition(self, condition: Floats) -> None:
        """Tell what reads it, before training, the mean and the deviation of what training images are given."""
        self.check_condition(condition, None)
        for part in self.parts:
            if GIVEN in part.conditions:
                part.conditions[GIVEN].know(condition)  # type: ignore[operator]

    @property
    def given(self) -> str:
        """What the total of a ledger is merely given; empty for nothing."""
        return "" if self.condition is None else self.condition.name

    def check_labels(self, labels: Labels | None, num: int | None = None, *, anywhere: bool = False) -> None:
        """Labels must be given to a conditional model, one for each of ``num`` images, and lie in 0 … classes-1.

        A model that knows no classes takes none. ``anywhere``, and without ``num``: on any device.
        """
        if labels is not None and not self.classes:
            raise InputError("labels: this model knows no classes: leave them out")
        if self.classes and labels is None:
            raise InputError(f"this model is conditional on the class: give labels 0 … {self.classes - 1}")
        if self.classes:
            device = None if anywhere or num is None else self.device
            check_map(labels, "labels", (), self.classes, device, num=num)

    def check_condition(self, condition: Floats | None, num: int | None, *, anywhere: bool = False) -> None:
        """Finite floats must be given for each of ``num`` images (none: any number) where the model reads any.

        A model that reads none takes none. ``anywhere``, and without ``num``: on any device.
        """
        if self.condition is None:
            if condition is not None:
                raise InputError("condition: this model is conditional on no floats: leave them out")
            return
        if condition is None:
            shape = by_axis(self.condition.shape)
            raise InputError(f"this model is given {self.condition.name}: give condition, {shape} floats an image")
        device = None if anywhere or num is None else self.device
        check_floats(condition, "condition", (num, *self.condition.shape), device)
        if not condition.isfinite().all():
            raise InputError("condition: holds a number that is not finite: correct it, or leave that image out")

    def _given(self, labels: Labels | None, condition: Floats | None, num: int) -> dict[str, Tensor]:
        """Labels and condition of ``num`` images by name, those that there are, checked, where the model lives."""
        given: dict[str, Tensor] = {}
        if labels is not None:
            self.check_labels(labels, num, anywhere=True)
            given["label"] = labels.to(self.device)
        if condition is not None:
            self.check_condition(condition, num, anywhere=True)
            given[GIVEN] = condition.to(self.device, torch.float32)
        return given
