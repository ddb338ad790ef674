"""Test clips of Moving MNIST: bits of a number by a model, and by PNG, WebP and FFV1 over the same clips.

    python benchmarks/moving.py RUN --out OUT [--clips N]

PNG and WebP hold a frame each, FFV1 (version 3, large context, groups of all frames) a clip each, in Matroska.
"""

import argparse
import io
import json
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vqstack.images import grid, load_splits
from vqstack.model import HierarchicalModel
from vqstack.phases import data_of_run


def picture(frame: np.ndarray, **how) -> int:
    """Bytes of a frame."""
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, **how)
    return len(stream.getvalue())


def ffv1(clip: np.ndarray) -> tuple[int, int]:
    """Bytes of the packets of a clip, and of the whole file."""
    stream, packets = io.BytesIO(), 0
    with av.open(stream, "w", format="matroska") as file:
        options = {"level": "3", "context": "1", "coder": "2", "g": str(len(clip)), "slices": "4"}
        track = file.add_stream(
            "ffv1", rate=10, width=clip.shape[2], height=clip.shape[1], pix_fmt="gray", options=options
        )
        for frame in [*clip, None]:
            image = None if frame is None else av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "gray")
            for packet in track.encode(image):
                packets += packet.size
                file.mux(packet)
    return packets, len(stream.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run on moving_mnist")
    parser.add_argument("--out", type=Path, required=True, help="receives contact sheets; new")
    parser.add_argument("--clips", type=int, default=100, help="of test that are scored and packed")
    options = parser.parse_args()
    options.out.mkdir()
    model = HierarchicalModel.from_pretrained(options.run / "model")
    pixels = load_splits(data_of_run(options.run), ["test"])["test"].pixels[: options.clips]
    clips = pixels[:, 0].numpy()
    frames = clips.reshape(-1, *clips.shape[2:])
    packets, files = np.sum([ffv1(clip) for clip in clips], 0)
    sizes = {
        "PNG": sum(picture(frame, format="PNG", optimize=True) for frame in frames),
        "WebP": sum(picture(frame, format="WEBP", lossless=True, quality=100, method=6) for frame in frames),
        "FFV1, packets": int(packets),
        "FFV1, files": int(files),
    }
    found = {name: 8 * size / clips.size for name, size in sizes.items()}
    found["ledger"] = json.loads((options.run / "ledger.json").read_text())["test"]["bits_per_dim"]
    codes = [model.encode(one[None]) for one in pixels[:4]]
    shown = model.sample(4, seed=1).pixels
    grid(pixels[:4], 1, model.stack.values, 2).save(options.out / "real.png")
    grid(shown, 1, model.stack.values, 2).save(options.out / "drawn.png")
    for level in range(1, len(model.stack) + 1):
        drawn = [model.vary(one[level - 1], level, seed=1).pixels[0] for one in codes]
        grid(pixels.new_tensor(np.stack(drawn)), 1, model.stack.values, 2).save(options.out / f"given-{level}.png")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
