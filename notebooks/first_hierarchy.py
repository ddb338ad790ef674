# %% [markdown]
# # A first hierarchy
#
# Digits of 8×8 become a map of codes, and that map becomes one code. `jupytext --to ipynb first_hierarchy.py` makes a
# notebook of this file.

# %%
import vqstack

settings = vqstack.recipe("digits")
model = vqstack.train(settings, out="runs/digits")  # three minutes of one core; a second call goes on, or loads

# %% [markdown]
# The ledger: what an image costs, row by row.

# %%
splits = vqstack.load_splits(settings.data)
test = splits["test"]
ledger = model.ledger(test.pixels, test.labels)
ledger

# %% [markdown]
# Codes are whole numbers: a map of level 1, and one code of level 2.

# %%
codes = model.encode(test.pixels[:10])
[tuple(z.shape) for z in codes]

# %% [markdown]
# What each level keeps of ten images, below the images.

# %%
import torch

from vqstack.images import grid

kept = [vqstack.reconstruct(model, test.pixels[:10], level) for level in (1, 2)]
strip = grid(torch.cat([test.pixels[:10], *kept]), columns=10, values=17, scale=8)
strip

# %% [markdown]
# New digits: three of each of two classes.

# %%
sample = model.sample(6, torch.tensor([3, 7] * 3), seed=1)
samples = grid(sample.pixels, columns=2, values=17, scale=8)
samples
