"""What images are compared by: a classifier trained here, or pretrained networks where they can be had."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vqstack.codes import fingerprint
from vqstack.disk import Lock, make_folder, on_main
from vqstack.errors import InputError, WriteError, extra, reason
from vqstack.fit import CHECKPOINTS, DONE, Fit, FitSettings, Source, evaluate, load_outcome, write_outcome
from vqstack.images import AugmentSettings, ImageSplit, Size
from vqstack.metrics import Features
from vqstack.nets import ResidualBlock, convolution, norm_layer
from vqstack.renderer import (
    Distance,
    LayerDistance,
    Lpips,
    check_colours,
    efficientnet_layers,
    lpips_distance,
    pictures_of,
)
from vqstack.shapes import Labels, Objective, Pixels
from vqstack.sources import PixelSource

Extractor = Callable[[Pixels], Features]
"""Images to features, one row an image, on the CPU."""


@dataclass(frozen=True)
class Ruler:
    """What images are compared by.

    Attributes:
        name: of the features.
        rows: features of sets of images.
        distance: of pairs of pictures; None where the features have no layers that are known here.
        judge: names classes; None where none was trained.
    """

    name: str
    rows: Extractor
    distance: Distance | None
    judge: "ImageJudge | None"


TRAINING = FitSettings(steps=1500, batch_size=64, learning_rate=2e-3, weight_decay=0.05, evaluate_every=250, ema=0.99)
VERSION = 1  # of the network and its training; another one is another ruler
FEATURES = 64


class Classifier(nn.Module):
    """A small residual network; its features are what is left of an image before the last layer.

    Few features, so that a thousand images suffice for their covariance.

    Args:
        shape: channels, and sites along each axis, of the images; it starts at half the resolution of 16 or more.
        values, classes: of the images.
    """

    def __init__(self, shape: tuple[int, ...], values: int, classes: int) -> None:
        super().__init__()
        self.values = values
        channels, *sides = shape
        convolve, axes = convolution(len(sides)), len(sides)
        self.body = nn.Sequential(
            convolve(channels, 32, 3, padding=1, stride=2 if min(sides) >= 16 else 1),
            ResidualBlock(32, axes=axes),
            convolve(32, FEATURES, 3, padding=1, stride=2),
            ResidualBlock(FEATURES, axes=axes),
            norm_layer(FEATURES),
            nn.SiLU(),
            (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 1](1),
            nn.Flatten(),
        )
        self.last = nn.Linear(FEATURES, classes)

    def features(self, pixels: Pixels) -> Float[Tensor, "b d"]:
        """[b, 64]."""
        return self.body(pixels.to(self.last.weight.dtype) * (2 / (self.values - 1)) - 1)

    def layers(self, pictures: Float[Tensor, "b c *map"]) -> list[Tensor]:
        """Features of sites, after each residual block; gradients pass to the pictures, -1 … 1."""
        found, x = list[Tensor](), pictures
        for part in self.body:
            x = part(x)
            if isinstance(part, ResidualBlock):
                found.append(x)
        return found

    def forward(self, pixels: Pixels, labels: Labels) -> Objective:
        """Cross-entropy of the labels, nats per image; metric: share of right answers."""
        logits = self.last(self.features(pixels))
        nats = F.cross_entropy(logits, labels)
        right = (logits.argmax(1) == labels).float().mean()
        return Objective(nats, {"nats": nats.detach(), "accuracy": right.detach()})


class ImageJudge:
    """A trained :class:`Classifier`: names the class of images, and gives their features.

    Attributes:
        accuracy: share of the validation images that it names rightly.
    """

    def __init__(self, network: Classifier, accuracy: float) -> None:
        self.network, self.accuracy = network.eval().requires_grad_(False), accuracy

    @torch.no_grad()
    def _run(self, pixels: Pixels, function: Callable[[Tensor], Tensor]) -> Tensor:
        device = self.network.last.weight.device
        return torch.cat([function(part.to(device)).cpu() for part in pixels.split(256)])

    def features(self, pixels: Pixels) -> Features:
        """See :data:`Extractor`."""
        return self._run(pixels, self.network.features)

    def classes(self, pixels: Pixels) -> Labels:
        """The most likely class of each image."""
        return self._run(pixels, lambda part: self.network.last(self.network.features(part)).argmax(1))


def trained_judge(
    train: ImageSplit,
    validation: ImageSplit,
    cache: Path,
    accelerator: Accelerator,
    settings: FitSettings | None = None,
    *,
    turned: bool = False,
) -> ImageJudge:
    """The classifier of these images: trained on ``train`` from a fixed seed, or read from the cache.

    Args:
        train, validation: labelled splits; images without labels are an InputError, unless ``turned``.
        cache: one folder for each set of training images is made in it.
        accelerator: where to train and run.
        settings: of the training; default: :data:`TRAINING`, in fewer steps above 32x32 pixels, where each costs more.
        turned: without labels learn which way an image was turned (Gidaris et al. 2018): features, and no classes.
    """
    settings = settings or _quick_enough(math.prod(train.size))
    labelled = train.labels is not None and validation.labels is not None
    if not labelled and not turned:
        raise InputError("classifier: the images have no labels: choose --features inception, or --no-samples")
    state = {
        f"{split.name}.{name}": value
        for split in (train, validation)
        for name, value in (("pixels", split.pixels), ("labels", split.labels))
        if value is not None
    }
    values, classes = int(train.source["values"]), train.num_classes if labelled else ways_to_turn(train.size)
    recipe = json.dumps([VERSION, fingerprint(state), settings.model_dump(), values, classes])
    folder = cache / f"classifier-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Classifier(tuple(train.pixels.shape[1:]), values, classes)
        network.to(accelerator.device)
        if not on_main(accelerator, lambda: (folder / DONE).exists()):
            with _alone_in(folder, accelerator):
                if not on_main(accelerator, lambda: (folder / DONE).exists()):
                    _train(network, train, validation, folder, accelerator, settings)
        accuracy = load_outcome(folder, network)["accuracy"]
    return ImageJudge(network, accuracy)


def ways_to_turn(size: Size) -> int:
    """In how many ways an image of this size can be turned: two along one axis, else four."""
    return 2 if len(size) == 1 else 4


def turn(pixels: Pixels, way: int) -> Pixels:
    """Squares by so many quarters; anything else mirrored along the last axis, the one before, or both."""
    if pixels.ndim == 4 and pixels.shape[-1] == pixels.shape[-2]:
        return pixels.rot90(way, (-2, -1))
    return pixels.flip([axis for bit, axis in ((1, -1), (2, -2)) if way & bit])


class TurnedSource:
    """Images, each turned, and which way: another one each epoch."""

    def __init__(self, images: PixelSource) -> None:
        self.images, self.ways = images, ways_to_turn(images.size)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Int64[Tensor, "b"], epochs: Int64[Tensor, "b"] | None) -> tuple[Tensor, ...]:
        (pixels,) = self.images.batch(indices, epochs)
        ways = (indices if epochs is None else indices + epochs) % self.ways
        turned = [turn(image[None], way) for image, way in zip(pixels, ways.tolist(), strict=True)]
        return torch.cat(turned), ways.to(pixels.device)


def _quick_enough(sites: int) -> FitSettings:
    """The training that takes as long for large images as for those of 32x32, where a sixth of its steps do."""
    steps = max(TRAINING.steps // 6, TRAINING.steps * min(sites, 2**10) // sites)
    return TRAINING.model_copy(update={"steps": steps, "evaluate_every": min(TRAINING.evaluate_every, steps)})


@contextmanager
def _alone_in(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """A folder of the cache, made where it is missing; another command that is writing into it is waited for."""
    lock: Lock | None = None  # the main process holds it for all of this command

    def take() -> None:
        nonlocal lock
        try:
            make_folder(folder)
            lock = Lock(folder, patience=math.inf)
        except (OSError, WriteError) as error:
            raise InputError(f"{folder}: cannot be made ({reason(error)}): choose another --cache") from error

    on_main(accelerator, take)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _train(
    network: Classifier,
    train: ImageSplit,
    validation: ImageSplit,
    folder: Path,
    accelerator: Accelerator,
    settings: FitSettings,
) -> None:
    """Fit the network; leaves its best weights and their accuracy on the validation split in ``folder``."""
    # Beyond the edge of an image lies black; beyond that of a sound, a loud click.
    shift = AugmentSettings(shift=max(1, train.pixels.shape[-1] // 16) if train.pixels.ndim == 4 else 0)

    labelled = train.labels is not None and validation.labels is not None

    def source(split: ImageSplit, augmentation: AugmentSettings | None = None) -> Source:
        pixels = split.pixels.to(accelerator.device)
        if not labelled or split.labels is None:
            return TurnedSource(PixelSource(pixels, augmentation=augmentation))
        return PixelSource(pixels, augmentation=augmentation, given=(split.labels.to(accelerator.device),))

    Fit("classifier", network, source(train, shift), source(validation), settings, accelerator, folder).run()
    accuracy = evaluate(network, source(validation), settings.batch_size, accelerator)["accuracy"]

    def leave() -> None:
        write_outcome(folder, network.state_dict(), {"accuracy": accuracy})
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)

    on_main(accelerator, leave)


def ruler(
    name: str,
    train: ImageSplit,
    validation: ImageSplit,
    cache: Path,
    accelerator: Accelerator,
    classes: bool = True,
) -> Ruler:
    """The features of that name; InputError for what cannot be.

    A classifier is trained where it gives the features, or where images have labels and ``classes`` are asked for.

    Args:
        name: classifier, efficientnet-lite0, lpips or inception.
        train, validation, cache, accelerator: see :func:`trained_judge`.
        classes: whether classes are to be told, too.
    """
    rows: Extractor | None = None
    distance: LayerDistance | Lpips | None = None
    values = int(train.source["values"])
    if name == "inception":
        rows = inception(values, accelerator.device)
    elif name != "classifier":
        check_colours(name, tuple(train.pixels.shape[1:]), "--features")
        asked = accelerator.device, "--features"
        distance = lpips_distance(*asked) if name == "lpips" else LayerDistance(efficientnet_layers(*asked))
        rows = _rows_of(distance, values, accelerator.device)
    if rows is not None and not (classes and train.labelled and validation.labelled):
        return Ruler(name, rows, distance, None)
    judge = trained_judge(train, validation, cache, accelerator)
    if rows is None:
        rows, distance = judge.features, LayerDistance(judge.network.layers)
    return Ruler(name, rows, distance, judge)


def _rows_of(distance: LayerDistance | Lpips, values: int, device: torch.device) -> Extractor:
    """The features of pictures, for pixels."""

    @torch.no_grad()
    def extract(pixels: Pixels) -> Features:
        parts = pixels.split(64)
        return torch.cat([distance.features(pictures_of(part.to(device), values)).cpu() for part in parts])

    return extract


def inception(values: int, device: torch.device) -> Extractor:
    """The 2,048 features of Inception v3 that published distances use, from torch-fidelity.

    Grey images become three equal channels, V grey values 0 … 255. InputError, naming the remedy, where the package or
    its weights cannot be had.
    """
    library = extra(
        "torch_fidelity.feature_extractor_inceptionv3",
        "--features: inception needs torch-fidelity, which is not installed: pip install 'vqstack[fid]', or choose "
        "classifier",
    )
    try:
        network = library.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)
    except OSError as error:  # what urllib and torch.hub raise
        raise InputError(
            f"--features: the weights of inception cannot be fetched ({error}): put {library.URL_INCEPTION_V3} into "
            f"{torch.hub.get_dir()}/checkpoints, or choose classifier"
        ) from error

    @torch.no_grad()
    def extract(pixels: Pixels) -> Features:
        colours = (pixels.float() * (255 / (values - 1))).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return torch.cat([network(part.to(device))[0].cpu() for part in colours.split(64)])

    return extract
