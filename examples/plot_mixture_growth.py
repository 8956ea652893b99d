"""
Two members grown into one network
==================================

Two networks of half the width learn digits, each from templates of its own. Grown, their weights lie on the diagonal of
the wide network's; beside it are new mixtures of the same templates, which a short training then changes.
"""

# %%
# Train both members and grow them in two ways: without new blocks, and with coefficients orthogonal to the members'.
import copy

import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith import claims
from weightsmith.core.metrics import accuracy
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.grow import MixtureGrowth, parameter_groups

torch.set_num_threads(1)
images, classes = digits()
x = images.flatten(1)
train, test = TensorDataset(x[:1200], classes[:1200]), [(x[1200:], classes[1200:])]


def make(width):
    body = [nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*body, nn.Linear(width, 10, bias=False))


def learn(model, rate, epochs):
    optimizer = torch.optim.Adam(parameter_groups(model, weight_decay=0.0), lr=rate)
    fit(model, train, optimizer=optimizer, scheduler="cosine", epochs=epochs, batch_size=50)


growth = MixtureGrowth(make, width=32, generator=torch.Generator().manual_seed(0))
for number in (0, 1):
    learn(growth.member(number), 3e-3, 10)
    print(f"member {number}: {accuracy(growth.member(number), test):.3f}")
pictures = {}
for init in ("zero", "orthogonal"):
    wide = copy.deepcopy(growth).grow(init, generator=torch.Generator().manual_seed(0))
    print(f"{init}: {accuracy(wide, test):.3f}")
    before = wide[2].weight.detach().clone()
    learn(wide, 1e-3, 5)
    pictures[f"{init}: grown"] = before
    pictures[f"{init}: change by training"] = wide[2].weight.detach() - before

# %%
# The hidden weight of the grown network, and what the stored claim measured.
import matplotlib.pyplot as plt

(claim,) = claims.stored("mixture-growth")
arms = {arm["name"]: arm for arm in claim["arms"] if "not trained on" not in arm["name"]}
names = sorted(arms, key=lambda name: arms[name]["mean"])
figure = plt.figure(figsize=(12, 5), layout="constrained")
grid = figure.add_gridspec(2, 4, width_ratios=(1, 1, 0.3, 3))
for place, (name, weight) in enumerate(pictures.items()):
    panel = figure.add_subplot(grid[place // 2, place % 2])
    span = 0.1 if "change" in name else 0.5
    panel.imshow(weight, cmap="RdBu", vmin=-span, vmax=span)
    panel.set_title(name, fontsize=10)
    panel.set(xticks=[0, 32], yticks=[0, 32])
axes = figure.add_subplot(grid[:, 3])
colors = ["#c8501e" if name.startswith("mixture") else "#2f6db3" for name in names]
axes.hlines(range(len(names)), *zip(*(arms[name]["ci95"] for name in names), strict=True), color=colors, lw=1.5)
axes.scatter([arms[name]["mean"] for name in names], range(len(names)), color=colors, zorder=3)
axes.set_yticks(range(len(names)), labels=names)
axes.set(xlabel="test accuracy, mean and 95 % interval", title="the stored claim: a network of 128 units")
axes.spines[["top", "right"]].set_visible(False)
plt.show()
