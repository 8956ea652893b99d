"""
Merge: can I average two networks that were trained apart?
==========================================================

Two networks learned the same task from different seeds. Their average is useless, unless the hidden units of one are
first put in the order of the other's.
"""

# %%
# Train two networks on scikit-learn's digits.
import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith.analyze import barrier_curve
from weightsmith.core.metrics import accuracy
from weightsmith.core.symmetry import find_symmetry
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.merge import match_weights

torch.set_num_threads(1)
images, classes = digits()
x = images.flatten(1)
train, test = TensorDataset(x[:1200], classes[:1200]), [(x[1200:], classes[1200:])]


def trained(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
    fit(model, train, optimizer=optimizer, epochs=15, batch_size=64, seed=seed)
    return model


one, two = trained(0), trained(1)
print(f"one {accuracy(one, test):.3f}, two {accuracy(two, test):.3f}")

# %%
# The symmetry of the network is found by running it once; the permutations by comparing weights. No data is used.
symmetry = find_symmetry(one, x[:1])
found = match_weights(one, two, symmetry)
moved = symmetry.permute(two.state_dict(), found.perms)
print(f"{len(found.perms)} layers permuted, distance of the two networks down by {found.distance_drop:.0%}")

# %%
# The error on the straight line between the two, as trained and matched.
start = one.state_dict()
curves = {
    name: barrier_curve(trained(2), start, state, lambda model: 1 - accuracy(model, test))
    for name, state in (("as trained", two.state_dict()), ("matched", moved))
}
for name, curve in curves.items():
    print(f"{name}: {1 - curve.losses[len(curve.losses) // 2]:.3f} half-way")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, curve in curves.items():
    axes.plot(curve.alphas, [100 * loss for loss in curve.losses], "o-", ms=3, label=name)
axes.set(xlabel="from one network (0) to the other (1)", ylabel="test error, %")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** Match before you average networks from different seeds. Networks fine-tuned from one pretrained model
# need no matching: ``weightsmith merge wise-ft BASE TUNED OUT`` averages two checkpoints of any size.
