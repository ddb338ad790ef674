"""onnxruntime beside torch: python benchmarks/export.py RUN EXPORTED [--num 256] [--threads 1].

Images a second of encoding, of decoding z_1 and of drawing samples, by an export of the run and by the run's own model.
The two take turns, and the best of the rounds counts, so that other work on the machine slows both.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import vqstack
from vqstack.export.run import Exported
from vqstack.model_settings import SamplingSettings

parser = argparse.ArgumentParser()
parser.add_argument("run", type=Path)
parser.add_argument("exported", type=Path)
parser.add_argument("--num", type=int, default=256, help="images of a batch")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=7)
asked = parser.parse_args()
torch.set_num_threads(asked.threads)


def opened(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = asked.threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return lambda given: session.run(None, dict(zip(names, given, strict=True)))


model, exported = vqstack.load(asked.run), Exported(asked.exported, opened)
plain = SamplingSettings()
pixels = model.sample(asked.num, seed=0, sampling=plain).pixels
codes = model.encode(pixels)
arrays, maps = pixels.numpy(), [z.numpy() for z in codes]
tasks = {
    "encode": (lambda: model.encode(pixels), lambda: exported.encode(arrays)),
    "decode z_1": (lambda: model.decode(codes[0], 1), lambda: exported.decode(maps[0], 1)),
    "sample": (
        lambda: model.sample(asked.num, seed=1, sampling=plain),
        lambda: exported.sample(asked.num, 1, temperature=1),
    ),
}
print(f"{'':12}{'torch':>12}{'onnxruntime':>14}   images/s, {asked.threads} thread(s), batch {asked.num}")
for name, pair in tasks.items():
    best = [float("inf"), float("inf")]
    for round_ in range(asked.rounds + 1):  # the first warms up
        for which, task in enumerate(pair):
            begun = time.perf_counter()
            task()
            if round_:
                best[which] = min(best[which], time.perf_counter() - begun)
    print(f"{name:12}{asked.num / best[0]:12,.0f}{asked.num / best[1]:14,.0f}   {best[0] / best[1]:.2f} times")
equal = np.mean(
    exported.sample(asked.num, 1, temperature=1)["pixels"]
    == model.sample(asked.num, seed=1, sampling=plain).pixels.numpy()
)
print(f"pixels of the samples that are equal: {equal:.6f}")
