# %% [markdown]
# # From images of yours to a generator
#
# Here the images are made in place: discs and squares. Put an array of yours in their stead, uint8 `[n, h, w]` or
# `[n, h, w, 3]`, a data set of torch, or one of `datasets`.

# %%
import numpy as np

import vqstack

draw = np.random.default_rng(0)
rows, columns = np.mgrid[:16, :16]
images, names = [], []
for number in range(400):
    row, column, radius = draw.uniform(5, 11), draw.uniform(5, 11), draw.uniform(2, 5)
    across, down = np.abs(columns - column), np.abs(rows - row)
    disc = number % 2 == 0
    inside = np.hypot(across, down) < radius if disc else np.maximum(across, down) < radius
    images.append(inside * np.uint8(255))
    names.append("disc" if disc else "square")
images = np.stack(images)

# %% [markdown]
# A recipe with maps for 16×16, and few steps. A callback shows how it goes.

# %%
settings = vqstack.recipe(
    "digits",
    train_levels={"steps": 300, "evaluate_every": 100},
    train_refiners={"steps": 100},
    train_prior={"steps": 100},
)


class Printed(vqstack.Callback):
    def on_evaluation(self, phase, step, values):
        print(f"{phase}, step {step}: {values['validation/nats'] / np.log(2):.1f} bits")


model = vqstack.train(settings, images, names, values=256, callbacks=[Printed()])
model.save_pretrained("shapes")

# %% [markdown]
# Draw a square and a disc, and go from one to the other.

# %%
import torch

from vqstack.images import grid

classes = torch.tensor([model.settings.class_number(name) for name in ("square", "disc")])
pair = model.sample(2, classes, seed=1).pixels
codes = model.encode(pair)[0]
way = model.decode(vqstack.interpolate(model, codes[:1], codes[1:], level=1, steps=6), level=1)
picture = grid(way, columns=6, values=256, scale=4)
picture
