"""
How few neurons reconstruct a layer with ModHiFi
================================================

The output of a feed-forward layer is a sum over its neurons. The picture shows which share of the output's energy a
subset of them reconstructs, for one layer of SmolLM2-135M, by how the subset was chosen: with the remaining weights
unchanged, and with the weights solved by least squares.
"""

# %%
# Two thousand tokens give the second moments of the layer's 1536 inputs.
import torch

from weightsmith.core.data import token_ids, token_windows
from weightsmith.core.fidelity import second_moments
from weightsmith.core.models import find_layers, observe
from weightsmith.core.statistics import Gram
from weightsmith.embedded import load, text
from weightsmith.sparsify import select_channels, subset_fidelity

model, tokenizer = load("smollm2")
windows = token_windows(token_ids(tokenizer, text("calibration")), length=256, count=8, batch_size=4)
(layer,) = find_layers(model, "*layers.14.mlp.down_proj")
moments = second_moments(observe(model, windows, [layer], Gram)[layer.name]).double()
weight = layer.weight_OI.double()
energy = torch.einsum("oi,oi->o", weight @ moments, weight)

# %%
# The fidelity of subsets of growing size, averaged over the outputs by their energy.
shares = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
curves: dict[str, tuple[list[float], list[float]]] = {}
for score in ("greedy", "energy", "saliency", "l2", "random"):
    solved, unchanged = [], []
    for share in shares:
        keep = select_channels(weight, moments, int(share * weight.shape[1]), score=score)
        solved.append(float((subset_fidelity(weight, moments, keep) * energy).sum() / energy.sum()))
        lost = weight.clone()
        lost[:, keep] = 0
        unchanged.append(float(1 - torch.einsum("oi,oi->", lost @ moments, lost) / energy.sum()))
    curves[score] = solved, unchanged

# %%
# Draw both.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
for score, both in curves.items():
    for panel, values in zip(axes, both, strict=True):
        panel.plot(shares, values, marker="o", ms=3, lw=1.5, label=score)
axes[0].set(title="weights solved by least squares", ylabel="share of the output's energy", ylim=(0, 1.02))
axes[1].set(title="weights unchanged")
axes[0].legend(frameon=False)
for panel in axes:
    panel.set_xlabel("share of the neurons kept")
    panel.spines[["top", "right"]].set_visible(False)
plt.show()
