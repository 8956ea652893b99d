"""
Which samples count
===================

A strategy turns the losses of a batch into weights. The left picture draws the weights of 64 samples by their loss, the
right one what the strategies did to a byte-level language model that reads one copyright notice over and over, half of
every batch.
"""

# %%
# Weights of 64 losses, spread evenly.
import torch

from weightsmith import claims
from weightsmith.train import loss_weights

losses = torch.linspace(0, 4, 64)
weights = {name: loss_weights(losses, name, r=0.4) for name in ("linupper", "quadratic", "extremes", "uniform")}
for name, each in weights.items():
    print(f"{name}: effective sample size {1 / each.square().sum():.0f} of 64")

# %%
# Draw them beside the stored claim.
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
for name, each in weights.items():
    left.plot(losses, 64 * each, label=name)
left.set(xlabel="loss of the sample", ylabel="weight, in shares of an equal one")
left.legend(frameon=False)
(claim,) = (claim for claim in claims.stored("loss-reweighting") if claim["experiment"] == "language")
arms = sorted((arm for arm in claim["arms"] if "best" not in arm["name"]), key=lambda arm: -arm["mean"])
colors = ["tab:orange" if arm["role"] == "method" else "tab:blue" for arm in arms]
right.barh([arm["name"] for arm in arms], [arm["mean"] for arm in arms], color=colors)
low = min(arm["mean"] for arm in arms)
right.set(xlabel="loss on unseen source, nats per byte", xlim=(low - 0.1, None))
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
