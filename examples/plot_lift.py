"""
Principal weights with LIFT
===========================

A two-layer network has learned the sum of its first 32 of 512 inputs (and a little of the next 32) from 5000 samples,
and is now fine-tuned on 100 samples of another function. Training the 5 % principal weights, those that are largest
after a low-rank approximation, overwrites the old function; training all weights, or 5 % others, only memorises the
samples. Predicting zero would be better than either: the network does not learn the new function from so few samples.
"""

# %%
# The first layer after training, and the 5 % that two criteria choose: the principal weights are those of the inputs
# that carry the old function, while many of the largest weights are large by chance.
import torch

from weightsmith.adapt import principal_mask
from weightsmith.claims.lift import DENSITY, finetune_toy, pretrain_toy, toy_optimizers

torch.set_num_threads(1)
network = pretrain_toy(seed=0)
weight = network.hidden.weight.detach()
count = round(DENSITY * weight.numel())
masks = {"principal (rank 8)": principal_mask(weight, 8, count), "largest": principal_mask(weight, 128, count)}
for name, mask in masks.items():
    print(f"{name}: {mask[:, :32].sum() / count:.0%} on the old function's inputs")

# %%
# Fine-tune the same network in four ways.
ways = toy_optimizers(seed=0)
errors = {name: finetune_toy(network, ways[name], seed=0) for name in ("lift", "magnitude", "random", "all weights")}

# %%
# Draw both.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained", width_ratios=(1, 1, 1.2))
for panel, (name, mask) in zip(axes, masks.items(), strict=False):
    panel.hist(mask.nonzero()[:, 1], bins=64, range=(0, 512), color="#c8501e" if "principal" in name else "#2f6db3")
    panel.set(xlabel="input", ylabel="weights chosen", title=name, ylim=(0, 900))
colors = {"lift": "#c8501e", "magnitude": "#2f6db3", "random": "#8a8178", "all weights": "#111111"}
for name, curve in errors.items():
    axes[2].plot(range(0, 25 * len(curve), 25), curve, label=name, color=colors[name])
axes[2].set(yscale="log", xlabel="step", ylabel="validation mean square error", title="fine-tuned on 100 samples")
axes[2].legend(frameon=False, fontsize=8)
for panel in axes:
    panel.spines[["top", "right"]].set_visible(False)
plt.show()
