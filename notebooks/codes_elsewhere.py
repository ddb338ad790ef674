# %% [markdown]
# # Codes in another model
#
# Codes are whole numbers, so any model can learn them. Here the codes of a vqstack model become a `.npy` file, and a
# prior is trained on it that knows nothing of images. A classifier of scikit-learn reads the same codes.

# %%
import numpy as np
import torch

import vqstack

settings = vqstack.recipe("digits")
model = vqstack.train(settings, out="runs/digits")
splits = vqstack.load_splits(settings.data)
codes = {name: model.encode(split.pixels)[0] for name, split in splits.items()}
np.save("codes.npy", codes["train"].numpy())

# %% [markdown]
# A prior over the file.

# %%
from vqstack.code_model import CodeModelSettings, build_code_model

maps = torch.from_numpy(np.load("codes.npy"))
size = model.stack.codebook_sizes[0]
prior = build_code_model(CodeModelSettings(depth=2, dim=64, heads=4), tuple(maps.shape[1:]), size, classes=0)
optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-3)
steps = 300
for _ in range(steps):
    objective = prior(maps[torch.randint(0, len(maps), (64,))])
    optimizer.zero_grad()
    objective.loss.backward()
    optimizer.step()
prior.eval()
with torch.no_grad():
    nats = -prior.distribution(len(codes["test"]), {}, maps.device).log_prob(codes["test"])
bits = float(nats.mean() / np.log(2))
print(f"{bits:.1f} bits for a map that could hold {maps[0].numel() * np.log2(size):.0f}")

# %% [markdown]
# What do the codes say of the class? Each site's code as one of `size` choices.

# %%
from sklearn.linear_model import RidgeClassifier

one_hot = {name: torch.nn.functional.one_hot(z, size).flatten(1).numpy() for name, z in codes.items()}
reader = RidgeClassifier().fit(one_hot["train"], splits["train"].labels)
accuracy = reader.score(one_hot["test"], splits["test"].labels)
print(f"{accuracy:.0%} of the test digits are named right by their 16 codes")
