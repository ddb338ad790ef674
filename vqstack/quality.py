"""How good samples are beside held-out images, and pictures of their codes beside the images themselves."""

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vqstack.errors import InputError
from vqstack.evaluation import known_ends, labels_and_condition
from vqstack.features import Extractor, Ruler
from vqstack.images import ImageSplit
from vqstack.likelihood import Known
from vqstack.metrics import Features, Fidelity, FidelityMeter, frechet_distance, precision_recall
from vqstack.model import Decoder, HierarchicalModel
from vqstack.model_settings import SamplingSettings
from vqstack.renderer import pictures_of
from vqstack.shapes import Labels, Nats, Pixels, ended, filled
from vqstack.terminal import Progress

PICTURED = 1000  # images whose codes are made into pictures, at most


@dataclass(frozen=True)
class Comparison:
    """One seed: two sets of equally many images against the same real ones.

    Attributes:
        seed: of the samples and of how the split is halved.
        distance: Fréchet distance of samples to one half of the split.
        floor: that of the other half, which no model can be expected to beat.
        precision, recall: of the samples, shares.
        floor_precision, floor_recall: of the other half.
        accuracy: share of samples that the classifier gives the class asked for; None without classes.
        floor_accuracy: share of the other half that it names rightly; None without labels.
    """

    seed: int
    distance: float
    floor: float
    precision: float
    recall: float
    floor_precision: float
    floor_recall: float
    accuracy: float | None
    floor_accuracy: float | None


@dataclass(frozen=True)
class Quality:
    """Comparisons over seeds, all with ``images`` images a side."""

    images: int
    comparisons: list[Comparison]

    def mean(self, name: str) -> float:
        """Mean over the seeds of one attribute of :class:`Comparison`."""
        return statistics.fmean(getattr(comparison, name) for comparison in self.comparisons)

    def deviation(self, name: str) -> float:
        """Standard deviation over the seeds, 0 for one seed."""
        values = [getattr(comparison, name) for comparison in self.comparisons]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def to_json(self) -> dict:
        """Every comparison, and mean and standard deviation of each number."""
        rows = [asdict(comparison) for comparison in self.comparisons]
        names = [name for name, value in rows[0].items() if name != "seed" and value is not None]
        summary = {name: {"mean": self.mean(name), "deviation": self.deviation(name)} for name in names}
        return {"images": self.images, "summary": summary, "seeds": rows}


def drawn_by_default(size: tuple[int, ...]) -> int:
    """How many images of a size are drawn unless somebody wants more: 1,000, fewer where that would take long."""
    return max(100, min(1000, 2**20 // math.prod(size)))


def images_a_side(wanted: int | None, split: ImageSplit) -> int:
    """How many images each side of a comparison gets: half of the split, :func:`drawn_by_default` at most.

    Or the number that is wanted.
    """
    most = len(split) // 2
    if wanted is not None and wanted > most:
        raise InputError(
            f"--num: {wanted} images a side need {2 * wanted} in {split.name}, which has {len(split)}: choose "
            f"{most} at most"
        )
    count = min(most, drawn_by_default(split.size)) if wanted is None else wanted
    if count < 5:
        raise InputError(f"--num: {count} images a side are too few for four neighbours each: choose 5 at least")
    return count


def draw_samples(
    model: HierarchicalModel,
    num: int,
    seed: int,
    sampling: SamplingSettings,
    batch_size: int = 64,
    split: ImageSplit | None = None,
    decoder: Decoder = "likelihood",
) -> tuple[Pixels, Labels | None]:
    """Samples number 0 … num - 1 of a seed, on the CPU, and their classes, drawn from P(label) where there are any.

    Their pixels come from the likelihood or from the renderer, their codes from the likelihood. A model that is given
    floats is given those of the split's images, from the first one on; samples end where these do, if there is padding.
    """
    samples = []
    for first in Progress(range(0, num, batch_size), desc=f"samples of seed {seed}", leave=False, disable=None):
        count = min(batch_size, num - first)
        condition, known = None, dict[int, Known]()
        if split is not None:
            beside = torch.arange(first, first + count) % len(split)
            _, condition = labels_and_condition(model, split, beside)
            known = known_ends(model, split.marked[beside])
        how: dict[str, Any] = {"seed": seed, "sampling": sampling, "first": first, "known": known, "decoder": decoder}
        samples.append(model.sample(count, None, condition, **how))
    labels = [sample.labels.cpu() for sample in samples if sample.labels is not None]
    return torch.cat([sample.pixels.cpu() for sample in samples]), torch.cat(labels) if labels else None


def _share_right(classify: Callable[[Pixels], Labels] | None, pixels: Pixels, labels: Labels | None) -> float | None:
    if classify is None or labels is None:
        return None
    return torch.eq(classify(pixels), labels).double().mean().item()


def compare(
    draw: Callable[[int], tuple[Pixels, Labels | None]],
    split: ImageSplit,
    count: int,
    seeds: list[int],
    extract: Extractor,
    classify: Callable[[Pixels], Labels] | None,
) -> Quality:
    """Samples against held-out images.

    Args:
        draw: from a seed to ``count`` samples and the classes that were asked for.
        split: held-out images, twice ``count`` at least.
        count: images a side.
        seeds: one comparison each.
        extract: images to features.
        classify: images to classes, to see whether samples are of the class asked for; none: that is left out.
    """
    real = extract(split.pixels)
    comparisons = []
    for seed in seeds:
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
        rest = order[count : 2 * count]
        one, other = real[order[:count]], real[rest]
        pixels, labels = draw(seed)
        drawn = extract(pixels)
        comparisons.append(
            Comparison(
                seed,
                frechet_distance(drawn, one),
                frechet_distance(other, one),
                *precision_recall(one, drawn),
                *precision_recall(one, other),
                _share_right(classify, pixels, labels),
                _share_right(classify, split.pixels[rest], None if split.labels is None else split.labels[rest]),
            )
        )
    return Quality(count, comparisons)


@dataclass(frozen=True)
class Likeness(Fidelity):
    """How near pictures come that are made of the codes of images.

    Attributes:
        perceptual: mean distance between the features of a picture and of its image; None without a ruler that has one.
        frechet: Fréchet distance between all pictures and all images (rFID); None without a ruler.
    """

    perceptual: float | None
    frechet: float | None


@dataclass(frozen=True)
class Likenesses:
    """Of every way from codes to pictures, by name; see :func:`likenesses`.

    Attributes:
        images: how many there are.
        features: the name of the ruler, if any.
        floor: Fréchet distance between two halves of the images, with half as many a side.
        ways: ``level-l`` (the mean), ``level-l renderer``, ``level-1 sample``.
    """

    images: int
    features: str | None
    floor: float | None
    ways: dict[str, Likeness]


@torch.no_grad()
def decoded(model: HierarchicalModel, pixels: Pixels) -> dict[str, Pixels]:
    """Pictures of the codes of images, on the CPU: the mean from each level, and what the renderer draws, if any.

    They end where the images do, if these have padding.
    """
    codes = model.encode(pixels.to(model.device))
    found: dict[str, Pixels] = {}
    for number, z in enumerate(codes, start=1):
        found[f"level-{number}"] = ended(model.decode(z, number).cpu(), pixels, model.stack.values)
        if model.renderer is not None:
            found[f"level-{number} renderer"] = model.decode(z, number, decoder="renderer").cpu()
    return found


class LikenessMeter:
    """Gathers pictures of one kind, batch by batch; keeps their features alone."""

    def __init__(self, values: int, ruler: Ruler | None) -> None:
        self.values, self.ruler, self.fidelity = values, ruler, FidelityMeter(values)
        self.rows, self.distances = list[Features](), list[Nats]()

    def add(self, found: Pixels, marked: Pixels) -> None:
        wanted = filled(marked, self.values)
        self.fidelity.add(found, wanted, marked >= 0)
        if self.ruler is None:
            return
        self.rows.append(self.ruler.rows(found))
        if self.ruler.distance is not None:
            self.distances.append(self.ruler.distance(*(pictures_of(x, self.values) for x in (found, wanted))).cpu())

    def read(self, real: Features | None) -> Likeness:
        perceptual = torch.cat(self.distances).double().mean().item() if self.distances else None
        frechet = None if real is None else frechet_distance(torch.cat(self.rows), real)
        return Likeness(**asdict(self.fidelity.read()), perceptual=perceptual, frechet=frechet)


@torch.no_grad()
def likenesses(
    model: HierarchicalModel, split: ImageSplit, ruler: Ruler | None = None, batch_size: int = 64
) -> Likenesses:
    """Pictures made of the codes of the first images, PICTURED at most, against these, in every way the model has.

    Args:
        model: in eval mode.
        split: the images.
        ruler: what they are compared by beside PSNR and SSIM; with one, pictures are drawn from the likelihood, too,
            at temperature 1 and from seed 0.
        batch_size: images at a time; does not change the result but at a tie.
    """
    count = min(len(split), PICTURED)
    meters: dict[str, LikenessMeter] = {}
    for indices in Progress(torch.arange(count).split(batch_size), desc="reconstruct", leave=False, disable=None):
        wanted = split.marked[indices]
        found = decoded(model, wanted)
        if ruler is not None:
            codes = model.stack.encode(wanted.to(model.device), 1)[0]
            about, known = labels_and_condition(model, split, indices), known_ends(model, wanted)
            drawn = model.vary(codes, 1, *about, sampling=SamplingSettings(), first=int(indices[0]), known=known)
            found["level-1 sample"] = drawn.pixels
        for name, pictures in found.items():
            meter = meters.setdefault(name, LikenessMeter(model.stack.values, ruler))
            meter.add(pictures.cpu(), wanted)
    real, floor = None if ruler is None else ruler.rows(split.pixels[:count]), None
    if real is not None:
        one, other = (real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]).tensor_split(2)
        floor = frechet_distance(one, other)
    ways = {name: meters[name].read(real) for name in sorted(meters)}
    return Likenesses(count, None if ruler is None else ruler.name, floor, ways)
