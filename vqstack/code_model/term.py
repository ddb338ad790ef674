"""The terms that a transformer makes: the prior ``P(z_L | label)``, and refined ``P(z_{l-1} | z_l, label)``."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vqstack.code_model.autoregressive import AutoregressiveCodeModel
from vqstack.code_model.base import CodeModel, Parent
from vqstack.code_model.build import parent_of
from vqstack.code_model.masked import MaskedCodeModel
from vqstack.code_model.unified import before_map
from vqstack.conditions import Conditioning
from vqstack.errors import InputError
from vqstack.level import Level
from vqstack.likelihood import Distribution, Known
from vqstack.shapes import Nats
from vqstack.terms import Term, Values
from vqstack.variables import Variable


class CodeModelTerm(Term):
    """What a code model says of its target given its conditions and what lies above.

    Args:
        row, target: see :class:`Term`.
        model: the prior or a refiner.
        levels: l … L, those whose codes lie above the target z_{l-1}; none for the prior.
        segments: of z_L … z_1, where one transformer reads all maps above the target; else z_l alone is read.
    """

    def __init__(
        self,
        row: str,
        target: Variable,
        model: CodeModel,
        levels: Sequence[Level] = (),
        segments: Sequence[AutoregressiveCodeModel] = (),
    ) -> None:
        super().__init__(row, target)
        self.model, self.levels, self.segments = model, levels, segments

    def distribution(
        self, given: Values, num: int, *, known: Known | None = None, guidance: float = 1.0
    ) -> Distribution:
        conditioning, parent = self.inputs(given, num)
        return self.model.distribution(num, conditioning, self._device, parent, known=known, guidance=guidance)

    def random_order_nats(self, values: Values, num: int) -> Nats | None:
        """See :meth:`MaskedCodeModel.random_order_nats`; none for other families."""
        if not isinstance(self.model, MaskedCodeModel):
            return None
        return self.model.random_order_nats(values[self.target.name], *self.inputs(values, num))

    def inputs(self, given: Values, num: int) -> tuple[Conditioning, Parent | None]:
        """What the model reads of what is given, and what it sees of the maps above.

        Where one of its conditions is missing, a model that was trained to do without is told nothing, as in training.
        Maps above z_l that are not given are the encodings of z_l.
        """
        conditions = self.model.conditions
        missing = [condition for name, condition in conditions.items() if name not in given]
        if missing and not self.model.settings.label_dropout:
            raise InputError(f"the {self._name} is conditional on {missing[0].needs}")
        conditioning = conditions.nothing(num, self._device) if missing else {name: given[name] for name in conditions}
        if not self.levels:
            return conditioning, None
        maps: list[Tensor] = []
        for level in self.levels if self.segments else self.levels[:1]:
            codes = given.get(level.upper.name)
            maps.append(level.encode(maps[-1]) if codes is None else codes)
        parents = [parent_of(level, codes) for level, codes in zip(self.levels, maps, strict=False)]
        if not self.segments:
            return conditioning, parents[0]
        return conditioning, parents[0]._replace(before=before_map(self.segments, maps[::-1], [None, *parents[:0:-1]]))

    @property
    def _name(self) -> str:
        return f"refiner of level {self.levels[0].number}" if self.levels else "prior"

    @property
    def _device(self) -> torch.device:
        return self.model.position.device
