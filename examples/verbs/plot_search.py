"""
Search: how large must the layers of my network be?
===================================================

You do not know how many units to take. TangleNAS trains all sizes inside one network, with shared weights, and learns
which to choose.
"""

# %%
# The largest network and the data: scikit-learn's digits.
import copy
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith.core.metrics import accuracy
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.search import random_search, tanglenas

torch.set_num_threads(1)
images, classes = digits()
x = images.flatten(1)
samples = [(image, label) for image, label in zip(x[:1000], classes[:1000], strict=True)]
test = [(x[1000:], classes[1000:])]
torch.manual_seed(0)
largest = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

# %%
# The choices: four widths for each of two layers.
space = Path(tempfile.mkdtemp()) / "space.yaml"
space.write_text("0.out_features: [4, 16, 32, 64]\n2.out_features: [4, 16, 32, 64]\n")


def alone(first, second):
    """Train one network of the space from scratch; return its size and its accuracy."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    fit(model, TensorDataset(x[:1000], classes[:1000]), optimizer=optimizer, epochs=10, batch_size=50)
    return sum(p.numel() for p in model.parameters()), accuracy(model, test)


# %%
# Search by gradients and at random; each network that is found is then trained from scratch.
found = {}
for name, method in (("TangleNAS", tanglenas), ("random search", random_search)):
    model = copy.deepcopy(largest)
    options = {"epochs": 15, "batch_size": 50, "learning_rate": 3e-3, "generator": torch.Generator().manual_seed(0)}
    method(model, samples, space=space, **options)
    widths = [layer.out_features for layer in model if isinstance(layer, nn.Linear)][:2]
    found[name] = alone(*widths)
    print(f"{name}: widths {widths}, {found[name][0]:,} weights, accuracy {found[name][1]:.3f}")

# %%
# The networks that were found, beside four guesses.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
guesses = [alone(width, width) for width in (4, 16, 32, 64)]
axes.plot(*zip(*guesses, strict=True), "o:", color="#8a8178", label="4, 16, 32, 64 units")
for (name, point), marker in zip(found.items(), "sD", strict=True):
    axes.plot(*point, marker, ms=9, label=name)
axes.set(xscale="log", xlabel="weights", ylabel="test accuracy")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** Nothing in the loss speaks for a small network: the search takes the largest of a space as long as that
# learns best, so the space must end where your budget does. Compare with random search at equal cost; the claim of
# :func:`weightsmith.search.tanglenas` does, on 729 networks.
