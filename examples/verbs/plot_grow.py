"""
Grow: how do I get a wider network without starting over?
=========================================================

Your network has become too small. Net2Net copies its units into a wider network that computes the same, and training
goes on from there.
"""

# %%
# A narrow network on scikit-learn's digits.
import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith.core.metrics import accuracy
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.grow import widen_net2net

torch.set_num_threads(1)
images, classes = digits()
x = images.flatten(1)
train, test = TensorDataset(x[:1200], classes[:1200]), [(x[1200:], classes[1200:])]


def network(width):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


narrow = network(6)
fit(narrow, train, epochs=20, learning_rate=3e-3, batch_size=50)
print(f"6 units: {accuracy(narrow, test):.3f}")

# %%
# Widen it to 48 units. Without noise the outputs are equal; a little noise tells the copies apart.
wide = network(48)
widen_net2net(narrow, wide, x[:1], noise=0.0, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    print(f"largest difference of the outputs: {(narrow(x) - wide(x)).abs().max():.1e}")
widen_net2net(narrow, wide, x[:1], noise=0.05, generator=torch.Generator().manual_seed(0))
print(f"48 units, not trained: {accuracy(wide, test):.3f}")

# %%
# Train the grown network and a fresh one alike, and measure after every epoch.
curves = {}
for name, model in (("grown", wide), ("fresh", network(48))):
    curves[name] = [accuracy(model, test)]
    for epoch in range(6):
        fit(model, train, epochs=1, learning_rate=1e-3, batch_size=50, seed=epoch)
        curves[name].append(accuracy(model, test))
    print(name, [round(value, 3) for value in curves[name]])

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, curve in curves.items():
    axes.plot(curve, "o-", label=name)
axes.axhline(accuracy(narrow, test), color="black", ls=":", lw=1, label="narrow")
axes.set(xlabel="epochs at 48 units", ylabel="test accuracy")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** A grown network starts where the small one ended. Over a long training the head start is lost: the
# claim of :func:`weightsmith.grow.mixture_growth` finds growing and training from scratch within a point at equal
# cost.
