"""Against a public tokenizer's training code: vector-quantize-pytorch's VQ in a bare loop with the losses of VQGAN.

    python benchmarks/vqgan.py RUN --out FOLDER [--seconds 600] [--learning-rate 3e-4] [--discriminator 0]

RUN has a renderer; its level 1 is compared. The bare side has the same encoder and a decoder of the same class and size
as the renderer, as many codes, the numbers of RUN's quantizer (decay, commitment, threshold of dead codes), the same
images, augmented as in RUN, in batches as large, the same network for the perceptual distance and the same class of
discriminator. It is trained as Esser et al. (2021) train: mean absolute error + perceptual distance + the library's
commitment loss, straight through, and after ``--start`` of the time a hinge discriminator with an adaptive weight;
Adam with betas 0.5 and 0.9 at a constant rate, no averaged weights, no choice among checkpoints. It gets ``--seconds``
of the processor, or where a GPU computes of the clock; by default as many as RUN's level 1 and renderer take here, by a
measurement of a few steps.

The first 1,000 test images are compared with the pictures of both by what ``vqstack evaluate`` has. Writes
FOLDER/vqgan.json and FOLDER/vqgan.png: images, the bare side, RUN's renderer.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from vqstack.config import RunConfig
from vqstack.ending import run_command
from vqstack.errors import InputError
from vqstack.features import Ruler, ruler
from vqstack.images import ImageSplit, default_cache, grid, load_splits
from vqstack.metrics import frechet_distance
from vqstack.model import HierarchicalModel
from vqstack.phases import config_of_run, forecast
from vqstack.phases.data import RunData
from vqstack.quality import LikenessMeter
from vqstack.quantizer import usage
from vqstack.renderer import pictures_of, pixels_of
from vqstack.renderer.adversary import Discriminator
from vqstack.shapes import AnyCodes, Pixels

SHOWN, IMAGES = 10, 1000
Coded = tuple[Pixels, AnyCodes]


class Bare(nn.Module):
    """Encoder, the library's codebook, decoder; the networks are those of a new model."""

    def __init__(self, model: HierarchicalModel, batch: int) -> None:
        super().__init__()
        assert model.renderer is not None
        level, settings = model.stack.levels[0], model.stack.levels[0].settings.quantizer
        self.level, self.encoder, self.decoder, self.values = level, level.encoder, model.renderer, model.stack.values
        use = batch * level.upper.sites / settings.codebook_size  # vectors a step for each code
        self.codebook = VectorQuantize(
            dim=settings.dim,
            codebook_size=settings.codebook_size,
            decay=settings.decay,
            commitment_weight=settings.commitment,
            kmeans_init=True,
            threshold_ema_dead_code=settings.revival * use,
            accept_image_fmap=True,
        )

    def forward(self, pixels: Pixels) -> tuple[Tensor, AnyCodes, Tensor]:
        """Pictures, codes, commitment loss."""
        vectors, codes, loss = self.codebook(self.encoder(self.level.features(pixels)))
        return self.decoder(vectors), codes, loss.sum()

    @torch.no_grad()
    def coded(self, pixels: Pixels) -> Coded:
        """Images there and back."""
        drawn, codes, _ = self(pixels)
        return pixels_of(drawn, self.values), codes


def batches(data: RunData, size: int) -> Iterator[Pixels]:
    """Training images in random order, epoch after epoch."""
    source, epoch = data.maps("train", data.config.train_levels[0]), 0
    while True:
        for indices in torch.randperm(len(source)).split(size):
            if len(indices) == size:
                yield source.batch(indices, torch.full_like(indices, epoch))[0]
        epoch += 1


def trained(model: HierarchicalModel, data: RunData, options: argparse.Namespace) -> tuple[Bare, dict]:
    """The bare side after so many seconds of training, and what these were."""
    config, accelerator = data.config, data.accelerator
    assert config.renderer is not None
    size, against = config.train_levels[0].batch_size, config.renderer.adversary
    perceptual = data.perceptual(config.renderer.perceptual)
    bare = Bare(model, size).to(accelerator.device).train()
    if config.compile:  # as the run is
        for network in (bare.encoder, bare.decoder):
            network.compile(dynamic=False)
    judge = Discriminator(against, model.stack.shape[0], model.stack.shape[1:]).to(accelerator.device)
    adam = partial(torch.optim.Adam, lr=options.learning_rate, betas=(0.5, 0.9))
    own = adam([*bare.encoder.parameters(), *bare.codebook.parameters(), *bare.decoder.parameters()])
    theirs, last = adam(judge.parameters()), bare.decoder.last_weight
    clock = clock_of(accelerator.device)
    steps, began = 0, clock()
    for pixels in batches(data, size):
        spent = clock() - began
        if spent >= options.seconds:
            break
        playing = options.discriminator > 0 and spent >= options.start * options.seconds
        real = pictures_of(pixels, bare.values)
        with accelerator.autocast():
            drawn, _, commitment = bare(pixels)
            distance = (real - drawn.float()).abs().mean() + perceptual(real, drawn).mean()
            loss = distance + commitment
            if playing:
                adversarial = -judge(drawn).float().mean()
                slopes = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (distance, adversarial)]
                balance = (slopes[0] / (slopes[1] + 1e-4)).clamp(max=1e4).detach()
                loss = loss + options.discriminator * balance * adversarial
        own.zero_grad()
        loss.backward()
        own.step()
        if playing:
            with accelerator.autocast():
                hinge = F.relu(1 - judge(real).float()).mean() + F.relu(1 + judge(drawn.detach()).float()).mean()
            theirs.zero_grad()
            (hinge / 2).backward()
            theirs.step()
        steps += 1
        if steps % 100 == 0:
            print(f"{spent:6.0f} s, step {steps}: distance {distance.item():.4f}", flush=True)
    return bare.eval(), {"seconds": clock() - began, "steps": steps, "batch": size}


def scored(code: Callable[[Pixels], Coded], split: ImageSplit, values: int, size: int, by: Ruler) -> dict:
    """How near pictures come to the images they are made of, and the use of the codes."""
    meter, counts = LikenessMeter(values, by), torch.zeros(size, dtype=torch.int64)
    wanted = split.pixels[:IMAGES]
    for pixels in wanted.split(64):
        found, codes = code(pixels)
        meter.add(found.cpu(), pixels)
        counts += torch.bincount(codes.flatten().cpu(), minlength=size)
    near, use = meter.read(by.rows(wanted)), usage(counts)
    return {**asdict(near), "used": use.share, "perplexity": use.perplexity}


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds that count: the processor's, which other jobs do not lengthen; where a GPU computes, those that pass."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def seconds_of(config: RunConfig, model: HierarchicalModel, splits: dict[str, ImageSplit], of: Accelerator) -> float:
    """Seconds that level 1 and the renderer of a run take here."""
    found = forecast(config, model.settings, splits, of, clock=clock_of(of.device))
    if not found:
        raise InputError("--seconds: the run is too short to be measured: give them")
    return found["level-1"] + found["renderer"]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run with a renderer")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the results")
    parser.add_argument(
        "--seconds",
        type=float,
        help="of the training, of the processor or with a GPU of the clock; default: those of the run",
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam")
    parser.add_argument("--discriminator", type=float, default=0.8, help="weight beside the adaptive one; 0: none")
    parser.add_argument("--start", type=float, default=0.5, help="share of the seconds before the discriminator")
    parser.add_argument("--features", default="classifier", help="that pictures are compared by, as of evaluate")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="keeps the trained classifier")
    options = parser.parse_args(arguments)
    config = config_of_run(options.run)
    if config is None or config.renderer is None:
        raise InputError("run: give the folder of a run with a renderer")
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    ours = HierarchicalModel.from_pretrained(options.run).to(accelerator.device)
    splits = load_splits(config.data)
    by = ruler(options.features, splits["train"], splits["validation"], options.cache, accelerator)
    if options.seconds is None:
        options.seconds = seconds_of(config, ours, splits, accelerator)
    torch.manual_seed(config.seed)
    new = HierarchicalModel(ours.settings).to(accelerator.device)  # starts as that of the run did
    stored = {name: split.stored for name, split in splits.items()}
    data = RunData(config, options.run, splits, stored, new.stack, accelerator)
    bare, training = trained(new, data, options)

    @torch.no_grad()
    def rendered(pixels: Pixels) -> Coded:
        codes = ours.stack.encode(pixels.to(ours.device), 1)[0]
        return ours.render(codes), codes

    test, size = splits["test"], ours.stack.codebook_sizes[0]
    sides = {"bare VQGAN": lambda x: bare.coded(x.to(accelerator.device)), f"{options.run} renderer": rendered}
    found = {name: scored(code, test, ours.stack.values, size, by) for name, code in sides.items()}
    halves = torch.Generator().manual_seed(0)  # as those of evaluate
    order = torch.randperm(min(IMAGES, len(test)), generator=halves)
    one, other = by.rows(test.pixels[order]).tensor_split(2)
    results = {"training": training, "ways": found, "floor": frechet_distance(one, other), "settings": vars(options)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "vqgan.json").write_text(json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8")
    shown = test.pixels[:SHOWN]
    rows = torch.cat([shown, *(code(shown)[0].cpu() for code in sides.values())])
    grid(rows, SHOWN, ours.stack.values, max(1, 64 // shown.shape[-1])).save(options.out / "vqgan.png")
    print(f"bare: {training['steps']} steps of {training['batch']} images in {training['seconds']:.0f} s")
    print(f"{'':32} PSNR dB   SSIM  perceptual    rFID  codes used  perplexity   (features: {by.name})")
    for name, row in found.items():
        cells = f"{row['psnr']:7.2f} {row['ssim']:6.3f}  {row['perceptual']:10.4f} {row['frechet']:7.3f}"
        print(f"{name:32} {cells}  {row['used']:10.1%}  {row['perplexity']:10.1f}")
    print(f"between halves of the images, {len(one)} a side: rFID {results['floor']:.3f}")


if __name__ == "__main__":
    run_command(main)
