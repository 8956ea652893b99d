"""
Averaging two networks that were trained independently
======================================================

Two perceptrons learn the handwritten digits from different random weights. Their average is useless
until the hidden units of one are put in the order of the other's. The pictures show the loss on the way,
the plane through the three sets of weights, and what lines up: the directions of the large singular values, while the
distance falls by a third only.
"""

# %%
# Train both: three hidden layers of 256 units, weight decay 1e-3.
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from weightsmith.analyze import alignment, alignment_map, barrier_curve, loss_slice
from weightsmith.core.symmetry import find_symmetry
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.merge import match_weights

torch.set_num_threads(1)
images, classes = digits()
x, y = images.flatten(1), classes
train, test = (x[:1257], y[:1257]), (x[1257:], y[1257:])


def cross_entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def trained(seed):
    torch.manual_seed(seed)
    sizes = (64, 256, 256, 256, 10)
    layers = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
    fit(model, TensorDataset(*train), loss=cross_entropy, optimizer=optimizer, epochs=20, batch_size=64, seed=seed)
    return model


@torch.no_grad()
def loss(model):
    return cross_entropy(model, test).item()


one, two = trained(0), trained(1)

# %%
# Match: the permutations are found by running the network once on an image.
symmetry = find_symmetry(one, x[:1])
found = match_weights(one, two, symmetry)
start, end = one.state_dict(), two.state_dict()
moved = symmetry.permute(end, found.perms)
print(f"{len(symmetry.groups)} permutations, {found.sweeps} sweeps, distance down by {found.distance_drop:.0%}")

# %%
# Measure.
model = trained(2)
plain, matched = (barrier_curve(model, start, state, loss) for state in (end, moved))
plane = loss_slice(model, (start, end, moved), loss, steps=21)
gammas = [0.05 * step for step in range(20)]
aligned = {
    name: [alignment(start, state, gamma=gamma).value for gamma in gammas]
    for name, state in (("matched", moved), ("as trained", end))
}
print(f"barrier {plain.barrier:.2f} -> {matched.barrier:.3f}")

# %%
# Draw.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
curves, surface, heat, threshold = axes.flat
curves.plot(plain.alphas, plain.losses, color="tab:grey", label="as trained")
curves.plot(matched.alphas, matched.losses, color="tab:blue", label="matched")
curves.set(xlabel="from one network (0) to the other (1)", ylabel="test loss", title="Loss on the way")
curves.legend(frameon=False)

levels = surface.contourf(plane.x, plane.y, plane.losses.log10(), levels=20, cmap="viridis_r")
figure.colorbar(levels, ax=surface, label="log10 of the test loss")
for (px, py), name in zip(plane.points, ("one", "other", "other, matched"), strict=True):
    surface.plot(px, py, "o", color="white", markeredgecolor="black")
    surface.annotate(name, (px, py), xytext=(6, 6), textcoords="offset points", color="white", weight="bold")
surface.set(xlabel="distance", ylabel="distance", title="The plane through the three", aspect="equal")

key = "2.weight"
size = 24
before, after = (alignment_map(start[key], state[key], size) for state in (end, moved))
both = torch.cat([before, torch.full((size, 1), torch.nan), after], 1)
shown = heat.imshow(both, cmap="RdBu_r", vmin=-0.8, vmax=0.8)
figure.colorbar(shown, ax=heat, label="alignment", shrink=0.7)
heat.set(
    title="Singular directions of the second layer:\nas trained (left), matched (right)",
    ylabel="direction of one",
    xlabel="direction of the other",
    xticks=[],
    yticks=[],
)

threshold.plot(gammas, aligned["as trained"], color="tab:grey", label="as trained")
threshold.plot(gammas, aligned["matched"], color="tab:blue", label="matched")
threshold.set(
    xlabel="threshold, as a share of the largest singular value",
    ylabel="alignment R",
    title="Directions above a threshold",
)
threshold.legend(frameon=False)
for panel in (curves, threshold):
    panel.spines[["top", "right"]].set_visible(False)
plt.show()
