"""A large photograph through level 1 of a model, by tiles: seconds, memory, and whether seams show.

    python benchmarks/any_size.py RUN --out FOLDER [--size 3072 4096] [--tiles 0 128] [--decoder renderer] [--whole]

The photograph is one of the two that come with scikit-learn, enlarged (Lanczos). A tile of 0 has the model's own size.
Encoding and decoding are timed, and beside them the bare networks on tiles that do not overlap. A seam would be a step
in the error of a picture: printed is the mean absolute step of the error across the borders of tiles (between
the cores of neighbours), divided by its mean step across all other borders between codes. 1 means that nothing is to be
seen. Once more without overlap, where seams must show. Writes the picture of each tile size.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from vqstack import HierarchicalModel, Tokenizer
from vqstack.ending import run_command
from vqstack.images import save_png
from vqstack.model import Decoder
from vqstack.tokenizer import cut


def photograph(size: list[int]) -> torch.Tensor:
    """uint8 [1, 3, height, width]."""
    picture = Image.fromarray(load_sample_images().images[0]).resize(size[::-1], Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]


def seams(error: torch.Tensor, tokenizer: Tokenizer) -> float:
    """Steps of an error [c, h, w] across borders of tiles, as a multiple of those across other borders of codes."""
    across, elsewhere = [], []
    for axis in (1, 2):
        sites, patch = error.shape[axis] // tokenizer.patch[axis - 1], tokenizer.patch[axis - 1]
        steps = error.diff(dim=axis).abs().mean(dim=[n for n in range(3) if n != axis])[patch - 1 :: patch]
        parts = cut(sites, tokenizer.map_shape[axis - 1], tokenizer.overlap)
        borders = torch.zeros(len(steps), dtype=torch.bool)
        borders[[part.core.stop - 1 for part in parts[:-1]]] = True
        across.append(steps[borders])
        elsewhere.append(steps[~borders])
    return float(torch.cat(across).mean() / torch.cat(elsewhere).mean())


def bare(model: HierarchicalModel, tokenizer: Tokenizer, pixels: torch.Tensor, decoder: Decoder) -> tuple[float, float]:
    """Seconds of the networks alone on tiles that do not overlap: to codes, and to pixels."""
    height, width = tokenizer.tile
    tiles = pixels.unfold(2, height, height).unfold(3, width, width).movedim((2, 3), (0, 1)).flatten(0, 2)
    level, began = tokenizer.stack.levels[0], time.perf_counter()
    with torch.no_grad():
        codes = [level.code(some) for some in tiles.split(tokenizer.batch)]
        middle = time.perf_counter()
        for some in codes:
            tokenizer.pictures(some, decoder)
    return middle - began, time.perf_counter() - middle


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives pictures and numbers")
    parser.add_argument("--size", type=int, nargs=2, default=[3072, 4096], help="rows and columns, pixels")
    parser.add_argument("--tiles", type=int, nargs="+", default=[0, 128], help="sides, pixels; 0: the model's own")
    parser.add_argument("--decoder", choices=("likelihood", "renderer"), default="renderer", help="what draws pixels")
    parser.add_argument("--whole", action="store_true", help="compare with a single tile, which must fit into memory")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    model: HierarchicalModel = HierarchicalModel.from_pretrained(options.run)
    pixels, results = photograph(options.size), []
    if options.whole:
        one = Tokenizer(model, tuple(options.size))
        whole = one.encode(pixels)
        shown = one.decode(whole, pixels.shape[2:], options.decoder)
    for side in options.tiles:
        for overlap in (None, 0):
            tokenizer = Tokenizer(model, (side, side) if side else None, overlap)
            began = time.perf_counter()
            codes = tokenizer.encode(pixels)
            middle = time.perf_counter()
            picture = tokenizer.decode(codes, pixels.shape[2:], options.decoder)
            ended = time.perf_counter()
            error = picture[0].float() - pixels[0].float()
            alone = bare(model, tokenizer, pixels, options.decoder)
            results.append(
                {
                    "tile": tokenizer.tile[0],
                    "overlap": tokenizer.overlap,
                    "codes_agree": tokenizer.seamless("encode"),
                    "pictures_agree": tokenizer.seamless(options.decoder),
                    "encode_seconds": middle - began,
                    "decode_seconds": ended - middle,
                    "bare_encode_seconds": alone[0],
                    "bare_decode_seconds": alone[1],
                    "psnr": float(10 * torch.log10(255**2 / error.square().mean())),
                    "seams": seams(error, tokenizer),
                    "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                }
            )
            if options.whole:
                off = (picture.int() - shown.int()).abs()
                results[-1]["codes_differ"] = float((codes != whole).float().mean())
                results[-1] |= {"pixels_differ": float((off > 0).float().mean()), "at_most": int(off.max())}
            print({k: round(v, 6) for k, v in results[-1].items()}, flush=True)
            save_png(picture[0], options.out / f"tile-{tokenizer.tile[0]}-overlap-{tokenizer.overlap}.png", 256)
    (options.out / "any_size.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
