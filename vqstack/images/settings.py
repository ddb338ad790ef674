"""What a data set of images is: settings only."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from numpy.typing import NDArray
from PIL import ImageColor
from pydantic import AfterValidator, BaseModel, Field, PositiveInt, field_validator, model_validator

from vqstack.errors import InputError
from vqstack.paths import expanded
from vqstack.registry import Registry
from vqstack.texts import TextSettings

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Size = tuple[PositiveInt, ...]
AXES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("digits", "imagefolder"), (2,)),
    **dict.fromkeys(("hub", "parquet", "webdataset"), (2, 1)),
    "array": (2, 1, 3),
    "audiofolder": (1,),
    "volumefolder": (3, 2, 1),
    "videofolder": (3,),
    "moving_mnist": (3,),
}
"""How many axes the inputs of a source may have, the usual number first."""
FLAT = ("height", "width")
STREAM_LIMIT = 2000  # images of each split of a stream that are kept for scoring, unless `limit` says otherwise


Arrays: TypeAlias = tuple[NDArray[Any], NDArray[Any] | None, list[str] | None]
"""Inputs as an array has them ([n, h, w], [n, c, 1 or more axes]), the class number of each, names of the classes."""

SOURCES = Registry[Callable[["ImageSettings"], Mapping[Split, Arrays]] | None]("source", dict.fromkeys(AXES))
"""Functions by the names of their sources, settings to the arrays of each split; the project's own have other ways."""
register_source = SOURCES.register
"""Let ``data.source`` name a function. The cache keeps what it gives: other data want other settings (``options``)."""


class ImageSettings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Where images, sounds or other signals come from, their geometry, and which of them are held out."""

    source: Annotated[str, AfterValidator(SOURCES.check)] = Field(
        default="digits",
        max_length=80,
        description="kind of source: digits (the 1,797 images of 8x8 inside scikit-learn), hub, parquet, webdataset, "
        "imagefolder, array, audiofolder, volumefolder, videofolder, moving_mnist, or the name under which a function "
        "of yours is registered (register_source)",
    )
    options: dict[str, int | float | str | bool] = Field(
        default={},
        description="what a source of yours is given beside the other settings, any unit; moving_mnist: counts of "
        "digits in a clip, and of clips of train, validation and test",
    )
    name: str | None = Field(default=None, description="hub: data set as OWNER/NAME or OWNER/NAME:CONFIGURATION")
    revision: str | None = Field(
        default=None, description="hub: branch, tag or commit; empty: main, as it was when first read"
    )
    splits: dict[Split, str] = Field(
        default={},
        description="hub: split -> its name in the data set; empty: the usual names, what is not named is not used",
    )
    files: dict[Split, str] = Field(
        default={},
        description="split -> parquet or tar file, glob or URL, folder of images, sounds, volumes or videos, .npy or "
        ".npz file",
    )
    image_column: str | None = Field(
        default=None, description="column of the images; empty: the only one of an image type"
    )
    label_column: str | None = Field(
        default=None,
        description="column of the labels, or COLUMN.MEMBER; left out: the only one of a class type; '': no labels",
    )
    condition: str | None = Field(
        default=None,
        description="column of the floats that are given with each image, or COLUMN.MEMBER: lists of one length, or "
        "lists of such lists; of .npz files an array",
    )
    text_encoder: str | None = Field(
        default=None,
        max_length=400,
        description="where the column of condition holds texts, what makes floats of them: OWNER/NAME on the hub, or a "
        "folder, of a model for transformers (vqstack[text])",
    )
    text_revision: str | None = Field(
        default=None, max_length=400, description="branch, tag or commit of text_encoder on the hub; empty: the newest"
    )
    text_pooled: bool = Field(
        default=True, description="the mean of the vectors of a text's tokens; off: the sequence of these vectors"
    )
    text_length: int = Field(
        default=64, ge=1, le=4096, description="tokens that are read of a text, count; more are cut off"
    )
    classes: int | None = Field(
        default=None,
        ge=1,
        le=2**15,
        description="count of classes where the source does not name them; empty: largest label of train + 1",
    )
    class_names: tuple[str, ...] = Field(
        default=(),
        description="names of the classes in the order of their numbers, where the source has numbers alone or "
        "another order; empty: those of the source",
    )
    size: Size | None = Field(
        default=None,
        min_length=1,
        max_length=3,
        description="height and width in pixels, covered and cropped; of sounds and series the count of numbers of an "
        "excerpt, of videos frames, rows and columns of a clip, of volumes and arrays the sites along each axis; "
        "empty: native size",
    )
    rate: int | None = Field(
        default=None,
        ge=1,
        le=10**6,
        description="numbers or frames a second, count: of sounds, other rates are resampled (of hub, parquet and "
        "webdataset it says, with one number in size, that these are sounds); videofolder, of each moment the frame "
        "that is shown; moving_mnist, of what is drawn",
    )
    range: tuple[float, float] | None = Field(
        default=None,
        description="volumefolder and series: the numbers that become values 0 and values - 1, any unit; those between "
        "are scaled and rounded, what lies beyond is cut. Empty: whole numbers from 0, as they are",
    )
    companding: Literal["linear", "mu-law"] = Field(
        default="linear",
        description="sounds: steps between values; mu-law: fine near silence, coarse where it is loud",
    )
    padding: bool = Field(
        default=False,
        description="sounds, series, volumes and videos: the last piece goes beyond the end, and shorter inputs are "
        "one piece; what lies beyond is neither scored nor counted. Else the last two pieces overlap, and shorter "
        "inputs are left out",
    )
    resize: Size | None = Field(
        default=None,
        description="height and width kept, pixels; size is its centre, or a random crop of it; empty: size. Of what "
        "is cut into pieces, or stored as arrays, the sites of a piece along each axis: nothing is scaled",
    )
    channels: int = Field(
        default=1,
        ge=1,
        le=16,
        description="channels, count: of images 1 grey or 3 RGB, of sounds 1 mono or 2 stereo, …",
    )
    background: str = Field(
        default="black",
        description="colour that transparent parts are laid on: a name, or #rrggbb; icons and drawings: white",
    )
    values: int = Field(
        default=256,
        ge=2,
        le=2**16,
        description="values per channel, count V; pixels are 0 … V-1, 256 at most (digits: 17; sounds: 65,536)",
    )
    validation: int | float = Field(
        default=0.1, ge=0, description="held out if missing: share of train below 1 or image count"
    )
    test: int | float = Field(
        default=0.1, ge=0, description="held out if missing: share of train below 1 or image count"
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="largest count of images in each split; a seeded choice of them. Empty: all; of a stream "
        f"{STREAM_LIMIT:,}, except where all of it is encoded",
    )
    seed: int = Field(
        default=0, ge=0, le=2**63 - 1, description="seed of the held-out splits and of the choice under limit, no unit"
    )
    on_error: Literal["refuse", "skip"] = Field(
        default="refuse", description="an image that cannot be read ends the command, or is left out, counted and named"
    )
    resident: Literal["auto", "device", "host"] = Field(
        default="auto",
        description="where images lie while training; auto: the device where they take at most half of its free memory",
    )
    streaming: bool = Field(
        default=False, description="train on a stream; of each split only `limit` images are kept, for scoring"
    )
    shuffle_buffer: int = Field(
        default=10_000,
        ge=1,
        description="streaming: count of encoded images, or of pieces of sounds, volumes, videos and series, among "
        "which the next is drawn",
    )
    workers: int = Field(
        default=2, ge=0, description="streaming: count of processes that read and decode, for each training process"
    )

    @property
    def texts(self) -> TextSettings | None:
        """What encodes the texts of the condition, if they are texts."""
        if self.text_encoder is None:
            return None
        about = {"revision": self.text_revision, "pooled": self.text_pooled, "length": self.text_length}
        return TextSettings(name=self.text_encoder, **about)

    @property
    def packed(self) -> bool:
        """Whether the files hold the bytes of images: a path in a stranger's shard is not followed."""
        return self.source in ("parquet", "webdataset")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("source") == "audiofolder" or _in_rows(data.get("source"), data.get("size"), data.get("rate")):
            return {"values": 2**16 if data.get("companding", "linear") == "linear" else 256} | data
        if data.get("source") == "moving_mnist":
            return {**data, "size": data.get("size") or (16, 64, 64)}
        if data.get("source", "digits") != "digits":
            return data
        return {"values": 17, "validation": 200, "test": 297} | data | {"size": data.get("size") or (8, 8)}

    @field_validator("background")
    @classmethod
    def _opaque(cls, colour: str) -> str:
        try:
            known = len(ImageColor.getrgb(colour)) == 3
        except ValueError:
            known = False
        if not known:
            raise ValueError(f"{colour} is no colour: write a name such as white, or #rrggbb")
        return colour

    @field_validator("files")
    @classmethod
    def _filled_in(cls, files: dict[Split, str]) -> dict[Split, str]:
        return {split: expanded(path) for split, path in files.items()}

    @field_validator("name")
    @classmethod
    def _home(cls, name: str | None) -> str | None:
        return None if name is None else expanded(name)

    @model_validator(mode="after")
    def _consistent(self) -> "ImageSettings":
        if any(isinstance(share, float) and share >= 1 for share in (self.validation, self.test)):
            raise ValueError("validation and test are shares below 1 or counts; write a count without a decimal point")
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("class_names holds a name twice: every class has its own")
        if self.class_names and self.classes not in (None, len(self.class_names)):
            raise ValueError(
                f"classes is {self.classes} and class_names has {len(self.class_names)}: leave classes out"
            )
        if self.source == "digits" and (self.label_column or self.image_column):
            raise ValueError(
                "image_column and label_column are of data sets with columns, not of the digits: leave them out"
            )
        if self.source == "digits" and (self.values, self.channels, self.size) != (17, 1, (8, 8)):
            raise ValueError("the digits are 8x8 of 17 grey values: set values to 17, channels to 1, leave size empty")
        if self.condition is not None and self.source not in ("hub", "parquet", "webdataset", "array"):
            raise ValueError(f"condition names a column, and source {self.source} has none: leave it out")
        if self.text_encoder is not None and (self.condition is None or self.source == "array"):
            raise ValueError("text_encoder reads a column of texts: name it in condition, or leave text_encoder out")
        if self.text_encoder is None and (self.text_revision or not self.text_pooled or self.text_length != 64):
            raise ValueError(
                "text_revision, text_pooled and text_length belong to text_encoder: name it, or leave them"
            )
        if self.source == "hub" and not self.name:
            raise ValueError("source hub needs name, for example ylecun/mnist")
        if self.source not in ("hub", "moving_mnist") and (self.splits or self.name or self.revision):
            raise ValueError(f"name, revision and splits are of source hub, not of {self.source}: leave them out")
        if self.options and self.source in SOURCES.own - {"moving_mnist"}:
            raise ValueError(f"options are of sources of yours, {self.source} takes none: leave them out")
        if self.source in SOURCES.own - {"digits", "hub", "moving_mnist"} and not self.files:
            raise ValueError(f"source {self.source} needs files: a path for each of train, validation, test")
        known = AXES.get(self.source, (1, 2, 3))
        if self.size and len(self.size) not in known:
            wanted = " or ".join(map(str, sorted(known)))
            raise ValueError(f"size: {len(self.size)} numbers, and source {self.source} has {wanted}: give one an axis")
        if self.source in ("hub", "webdataset") and len(self.size or (1, 1)) == 1 and not self.rate:
            raise ValueError(f"source {self.source} has images, two numbers in size, or sounds, which need rate")
        if self.source in ("audiofolder", "videofolder") and not (self.size and self.rate):
            raise ValueError(
                f"source {self.source} needs size, the numbers of an excerpt or frames, rows and columns of a clip, "
                "and rate, the numbers or frames of a second"
            )
        if self.source == "volumefolder" and not self.size:
            raise ValueError("source volumefolder needs size, the sites of a block along each axis")
        seen = self.packed or self.source in ("digits", "hub", "imagefolder", "videofolder")  # by Pillow
        if seen and not (self.series or self.sounds) and (self.channels not in (1, 3) or self.values > 256):
            raise ValueError("images and videos have 1 or 3 channels, 256 values at most: correct channels or values")
        if self.source == "moving_mnist" and (self.channels, self.values) != (1, 256):
            raise ValueError("moving_mnist has one channel of 256 values: leave channels and values out")
        if self.range and not self.range[0] < self.range[1]:
            raise ValueError("range: the number that becomes 0 comes first and is the smaller one")
        if self.resize and not (self.size and len(self.resize) == len(self.size)):
            raise ValueError("resize needs size, and a number for each of its axes")
        if self.resize and self.size and any(r < s for r, s in zip(self.resize, self.size, strict=True)):
            raise ValueError("resize is at least as large as size along all axes")
        if self.resize and (self.source == "moving_mnist" or self.padding):
            raise ValueError("resize: pieces of moving_mnist, and those with padding, are whole: leave it out")
        cut = self.series or self.sounds or self.source in ("audiofolder", "videofolder", "volumefolder")
        if self.padding and not cut:
            raise ValueError(f"padding: source {self.source} is not cut into pieces: leave it out (pad_to pads images)")
        if self.streaming and self.source not in SOURCES.own - {"digits", "array", "moving_mnist"}:
            raise ValueError(f"source {self.source} is read whole: leave streaming out")
        if self.streaming and any(isinstance(share, int) and share for share in (self.validation, self.test)):
            raise ValueError("streaming does not know how many images there are: hold out shares below 1, not counts")
        return self

    def unused(self) -> dict[str, str]:
        """Name of each field that is read by nothing, as the others are -> why, and what to do."""
        found: dict[str, str] = {}
        if self.source == "digits":
            found["files"] = (
                "the digits have no files: for a folder of images add --config folder, for others say "
                "what they are (data.source)"
            )
            found["on_error"] = "the digits can all be read: leave it out"
        if self.source == "hub":
            found["files"] = f"{self.name} is fetched from the hub: say what the files are (data.source), or leave them"
        seen = self.source in ("hub", "parquet", "webdataset", "imagefolder", "videofolder")
        if not seen or self.series or self.sounds:
            found["background"] = "nothing is transparent in numbers: leave it out"
        if not self.sounds and self.source not in ("audiofolder", "videofolder", "moving_mnist"):
            found["rate"] = "of sounds (one number in size) and videos alone: leave it out"
        if not self.sounds and self.source != "audiofolder":
            found["companding"] = "of sounds alone: leave it out"
        if self.source != "volumefolder" and not self.series:
            found["range"] = "of volumes and series alone: leave it out"
        if not self.streaming:
            found |= dict.fromkeys(("workers", "shuffle_buffer"), "of streams alone: add streaming, or leave it out")
        named = self.splits if self.source == "hub" else self.files if self.source != "moving_mnist" else {}
        why = "held out where there is no such split, and one is named: leave it out"
        found |= {name: why for name in SPLITS[1:] if name in named}
        if self.label_column == "":
            found |= dict.fromkeys(("classes", "class_names"), "label_column '' means no labels: leave one of them out")
        return found

    def check_files(self) -> None:
        """InputError for files that would not be read; every function that reads images begins with it."""
        if self.files and "files" in (why := self.unused()):
            raise InputError(f"files: {why['files']}")

    @property
    def series(self) -> bool:
        """Whether inputs are lists of numbers in rows of Parquet files."""
        return self.source == "parquet" and len(self.size or (1, 1)) == 1 and self.rate is None

    @property
    def sounds(self) -> bool:
        """Whether inputs are sound files in rows or archives."""
        return _in_rows(self.source, self.size, self.rate)

    @property
    def pictures(self) -> bool:
        """Whether inputs are grey or colour images of 8 bits, which Pillow knows."""
        return len(self.size or (1, 1)) == 2 and self.channels in (1, 3) and self.values <= 256

    @property
    def axis_names(self) -> tuple[str, ...]:
        """What the axes of an input are called."""
        moving = self.source in ("videofolder", "moving_mnist")
        return {1: ("time",), 3: ("time" if moving else "depth", *FLAT)}.get(len(self.size or FLAT), FLAT)

    @property
    def kept(self) -> Size | None:
        """Sites along each axis that inputs are stored at, None for their native size."""
        return self.resize or self.size

    def __str__(self) -> str:
        named = {"digits": "scikit-learn digits", "hub": f"hub data set {self.name}"}
        return named.get(self.source, f"{self.source} {', '.join(self.files.values())}")


def _in_rows(source: Any, size: Any, rate: Any) -> bool:
    """Whether inputs are sounds, which have one axis and a rate, in rows or archives; of settings that may be wrong."""
    one = isinstance(size, list | tuple) and len(size) == 1
    return source in ("hub", "parquet", "webdataset") and one and rate is not None
