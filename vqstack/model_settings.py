"""Everything that is needed to build a model again, and how it draws: settings only."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal
from unicodedata import normalize

from pydantic import Field, field_validator, model_validator

from vqstack.code_model import CodeModelSettings, RefinerSettings, check_refiners, check_unified, segments_of
from vqstack.conditions import ConditionSettings
from vqstack.errors import InputError, listed
from vqstack.likelihood import Draw
from vqstack.renderer import RendererSettings
from vqstack.settings import Settings
from vqstack.stack import StackSettings

Side = Annotated[int, Field(ge=1, le=2**20)]  # sites along an axis


COLDEST = 0.001  # temperature


class SamplingSettings(Settings):
    """How images are drawn: one value for the prior and all levels, or one each, prior first, level 1 last."""

    temperature: tuple[float, ...] = Field(
        default=(1.0,), description="Temperature above 0, no unit; one, or one a level, prior first."
    )
    top_k: tuple[int, ...] = Field(
        default=(0,), description="Draw among the k most likely values, count; 0: all. One, or one a level."
    )
    top_p: tuple[float, ...] = Field(default=(1.0,), description="Nucleus probability in (0, 1]. One, or one a level.")
    mode: tuple[bool, ...] = Field(
        default=(False,), description="Most likely value instead of drawing. One, or one a level."
    )
    mean: tuple[bool, ...] = Field(
        default=(False,),
        description="Show the mean of the pixels, rounded, instead of drawing them or taking their mode; codes have no "
        "mean. One (for the pixels), or one a level.",
    )
    guidance: tuple[float, ...] = Field(
        default=(1.0,),
        description="Classifier-free guidance, no unit; 1: none, 0: without the label. One (for all parts that were "
        "trained with label_dropout), or one a level.",
    )
    confidence: tuple[bool, ...] = Field(
        default=(False,),
        description="Keep the most confident draws of each pass in place of the schedule's sites; such samples do not "
        "follow the likelihood. One (for all masked models), or one a level.",
    )

    if TYPE_CHECKING:  # what checkers and editors cannot see without pydantic's plugin: a single value will do

        def __init__(
            self,
            *,
            temperature: float | Sequence[float] = ...,
            top_k: int | Sequence[int] = ...,
            top_p: float | Sequence[float] = ...,
            mode: bool | Sequence[bool] = ...,
            mean: bool | Sequence[bool] = ...,
            guidance: float | Sequence[float] = ...,
            confidence: bool | Sequence[bool] = ...,
        ) -> None: ...

    @field_validator("*", mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        """A single value stands for a list of it: ``SamplingSettings(temperature=0.5)``."""
        return (value,) if isinstance(value, int | float) else value

    def draws(self, levels: int) -> list[Draw]:
        """One :class:`Draw` for the prior, level L, …, level 1; wrong numbers or values are errors."""
        columns: dict[str, list] = {}
        for name in SamplingSettings.model_fields:
            given = getattr(self, name)
            if len(given) not in (1, levels + 1):
                raise InputError(
                    f"{name}: {len(given)} values: give one, or {levels + 1} (prior, level {levels} … level 1)"
                )
            columns[name] = list(given) * (levels + 1 if len(given) == 1 else 1)
        for t in columns["temperature"]:
            if t < COLDEST:
                raise InputError(f"temperature: {t} is below {COLDEST}: for the likeliest image use mode")
        for k in columns["top_k"]:
            if k < 0:
                raise InputError(f"top_k: {k} is negative: use 0 for all values")
        for p in columns["top_p"]:
            if not 0 < p <= 1:
                raise InputError(f"top_p: {p} is outside (0, 1]: use 1 for all values")
        for g in columns["guidance"]:
            if g < 0:
                raise InputError(f"guidance: {g} is negative: 1 is none, 2 to 4 are usual")
        columns["top_k"] = [k or None for k in columns["top_k"]]
        return [Draw(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


class Geometry(Settings):
    """How images became what the model was trained on, as ``data`` of a run has it."""

    size: tuple[Side, ...] | None = Field(
        description="Sites along each axis, of images rows and columns; none: they came as they are."
    )
    resize: tuple[Side, ...] | None = Field(
        default=None, description="Rows and columns of which `size` is the centre, pixels."
    )
    rate: int | None = Field(
        default=None, ge=1, description="Count of numbers or frames a second; none: these are no sounds and no videos."
    )
    range: tuple[float, float] | None = Field(
        default=None, description="Numbers that values 0 and V-1 stand for, any unit; none: the values themselves."
    )
    companding: Literal["linear", "mu-law"] = Field(default="linear", description="Steps between the values of sounds.")
    background: str = Field(
        default="#000000", pattern="^#[0-9a-f]{6}$", description="Colour that transparent parts were laid on, #rrggbb."
    )


class ModelSettings(Settings):
    """Everything that is needed to build the model again: the ``config.json`` of an artefact."""

    stack: StackSettings = Field(default=StackSettings(), description="The levels.")
    prior: CodeModelSettings = Field(default=CodeModelSettings(), description="The transformer over the top map.")
    refiners: tuple[RefinerSettings, ...] = Field(
        default=(), description="Corrections to the decoders of chosen levels."
    )
    unified: bool = Field(default=False, description="The prior's transformer also refines every level above 1.")
    renderer: RendererSettings | None = Field(
        default=None, description="A second decoder of level 1, to look at, outside the likelihood; none: none."
    )
    sampling: SamplingSettings = Field(default=SamplingSettings(), description="Default settings of generation.")
    image_shape: tuple[int, ...] = Field(
        min_length=2,
        max_length=4,
        description="Channels (count), then sites along each axis: of images rows and columns, pixels.",
    )
    values: int = Field(default=256, ge=2, le=2**16, description="V, count of values a channel: pixels are 0 … V-1.")
    geometry: Geometry | None = Field(
        default=None, description="How images are prepared; none: not known, as in older models."
    )
    classes: int = Field(default=0, ge=0, le=10**6, description="Count of class labels; 0: none.")
    condition: ConditionSettings | None = Field(
        default=None, description="Floats that are given with each image; none: none."
    )
    class_names: tuple[str, ...] = Field(
        default=(),
        description="Names of the classes in the order of their numbers; empty: not known, as in older models.",
    )

    def unused(self) -> dict[str, str]:
        """Dotted name of each field that is read by nothing, as the others are -> why, and what to do."""
        return {f"stack.pixels.{name}": why for name, why in self.stack.pixels.unused_of(self.values).items()}

    @model_validator(mode="after")
    def check(self) -> "ModelSettings":
        if not 1 <= self.image_shape[0] <= 16 or min(self.image_shape) < 1:
            raise ValueError(f"image_shape: {self.image_shape} is no shape of 1 to 16 channels and a site or more")
        check_refiners(self.refiners, self.stack.levels)
        if self.unified:
            check_unified(self.prior, self.refiners, self.stack.levels)
        if self.unified and self.condition is not None and self.condition.kind == "attention":
            raise ValueError("unified: its segments share blocks, which attend to no condition: set kind to sequence")
        if self.class_names and not len(set(self.class_names)) == len(self.class_names) == self.classes:
            raise ValueError(f"class_names: {len(set(self.class_names))} different names for {self.classes} classes")
        return self

    def stored(self) -> dict[str, Any]:
        """What :func:`vqstack.images.saver` wants to know of the images."""
        known, given = self.geometry, {"shape": self.image_shape, "values": self.values}
        return given | ({"rate": known.rate, "limits": known.range, "companding": known.companding} if known else {})

    @property
    def sound(self) -> bool:
        """Whether inputs are sounds of some rate."""
        return len(self.image_shape) == 2 and self.geometry is not None and self.geometry.rate is not None

    @property
    def every_refiner(self) -> tuple[RefinerSettings, ...]:
        """The refiners, those included that are the prior's transformer."""
        return self.refiners + (segments_of(self.prior, len(self.stack.levels)) if self.unified else ())

    def conditional(self, part: CodeModelSettings) -> bool:
        """Whether a transformer of these settings is conditional on anything."""
        return (part.labels and self.classes > 0) or (part.condition and self.condition is not None)

    def class_number(self, name: str) -> int:
        """The number of the class of that name; a number where no class is called so. InputError for none of both."""
        for names, wanted in (
            (self.class_names, name),
            ([normalize("NFC", known) for known in self.class_names], normalize("NFC", name)),
        ):
            if wanted in names:
                return names.index(wanted)
        if re.fullmatch("[0-9]{1,9}", name) and int(name) < self.classes:
            return int(name)
        known = listed(self.class_names) if self.class_names else f"0 … {self.classes - 1}"
        raise InputError(f"label {name} is no class of this model: choose among {known}")

    @property
    def _parts(self) -> list[CodeModelSettings | None]:
        """The transformer of the prior and of each level that has one, level 1 last."""
        refiners = {refiner.level: refiner for refiner in self.every_refiner}
        return [self.prior, *(refiners.get(n) for n in range(len(self.stack.levels), 0, -1))]

    @property
    def guided(self) -> list[bool]:
        """Whether guidance has an effect on the prior, on level L, …, on level 1: they learned to do without labels."""
        return [p is not None and self.conditional(p) and p.label_dropout > 0 for p in self._parts]

    def draws(self, sampling: SamplingSettings | None = None) -> list[Draw]:
        """One :class:`Draw` for the prior, level L, …, level 1; what these models cannot do is an error.

        A single value of guidance, confidence or mean is for the parts that can do it, of which there must be one.
        """
        sampling, parts = sampling or self.sampling, self._parts
        names = ["prior", *(f"level {n}" for n in range(len(self.stack.levels), 0, -1))]
        free = [True, *(level.decoder.family == "product" for level in reversed(self.stack.levels))]  # in any order
        masked = [p is not None and p.family == "masked" and f for p, f in zip(parts, free, strict=True)]
        draws = sampling.draws(len(self.stack.levels))
        pixels = [part == "level 1" for part in names]
        for field, able, neutral, needs in (
            ("mean", pixels, False, "values that are ordered, the pixels below level 1"),
            (
                "guidance",
                self.guided,
                1.0,
                "a transformer with labels or a condition, trained with label_dropout above 0",
            ),
            ("confidence", masked, False, "a transformer of the masked family over a decoder of family product"),
        ):
            given = getattr(sampling, field)
            if len(given) == 1 and any(able):
                draws = [d if a else d.model_copy(update={field: neutral}) for d, a in zip(draws, able, strict=True)]
            for name, draw, a in zip(names, draws, able, strict=True):
                if getattr(draw, field) != neutral and not a:
                    raise InputError(f"{field} needs {needs}; {name} has none: leave it at {neutral} there")
        if any(d.guidance != 1 and d.confidence for d in draws):
            raise InputError("guidance and confidence exclude each other: leave one of them out")
        if draws[-1].mean and draws[-1].confidence:
            raise InputError("mean and confidence exclude each other at level 1: leave one of them out")
        return draws
