"""
All choices of a tensor in one mask
===================================

A feed-forward layer whose width is the hidden size times a ratio: nine joint choices of both are one mask on the
largest weight matrix. Beside it the stored claims: what mixing weights costs, and how good the network is that was
found.
"""

# %%
# Weights of the choices, drawn as the search draws them, and the mask of the layer.
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from weightsmith.search import DrNAS, Supernet

torch.manual_seed(0)
config = GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
net = Supernet(
    model, {"hidden_size": [16, 40, 64], "mlp_ratio": [1, 2, 4]}, {"input_ids": torch.zeros(1, 4, dtype=torch.long)}
)
net.state.set_weights({"hidden_size": torch.tensor([0.3, 0.3, 0.4]), "mlp_ratio": torch.tensor([0.2, 0.5, 0.3])})
layer = model.transformer.h[0].mlp.c_fc
mask = layer.parametrizations.weight[0].mask()
print("the layer's weight:", tuple(layer.weight.shape), "- mask from", round(mask.min().item(), 2), "to 1")
print("one draw:", DrNAS()(net.state.alpha("mlp_ratio"), 0.0, torch.Generator().manual_seed(0)).tolist())

# %%
# One architecture is a network of its own, with the same outputs.
x = torch.randint(100, (1, 16), generator=torch.Generator().manual_seed(0))
net.state.fix({"hidden_size": 40, "mlp_ratio": 2})
small = net.extracted({"hidden_size": 40, "mlp_ratio": 2})
with torch.no_grad():
    gap = (model.eval()(x).logits - small.eval()(x).logits).abs().max()
print(f"{sum(p.numel() for p in small.parameters()):,} parameters, largest difference {gap:.1e}")
assert isinstance(small, nn.Module)

# %%
# Draw the mask and the claims.
import math

import matplotlib.pyplot as plt

from weightsmith import claims

stored = {claim["experiment"]: claim["arms"] for claim in claims.stored("tanglenas")}
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained", width_ratios=(1, 1.1, 1.3))
image = left.imshow(mask.detach().T, aspect="auto", cmap="Oranges", vmin=0, vmax=1)
left.set(xlabel="input features", ylabel="outputs", title="mask of nine joint choices")
figure.colorbar(image, ax=left)
kinds = {"mixed weights": "#c8501e", "mixed outputs": "#8fb1d6"}
for place, (experiment, unit) in enumerate((("time", "ms"), ("memory", "MB"))):
    for number, arm in enumerate(stored[experiment]):
        value = math.exp(arm["mean"]) * 1000 if unit == "ms" else math.exp(arm["mean"]) / 2**20
        bar = middle.bar(place + 0.38 * number, value, 0.34, color=kinds[arm["name"]])
        middle.bar_label(bar, [f"{value:.3g}"], fontsize=8)
middle.set(yscale="log", title="a convolution with 27 joint choices", ylim=(1, 2000))
middle.set_xticks([0.19, 1.19], ["step, ms", "kept for backward, MB"])
middle.legend([plt.Rectangle((0, 0), 1, 1, color=color) for color in kinds.values()], kinds, frameon=False, fontsize=8)
colors = {"method": "#c8501e", "baseline": "#8fb1d6", "control": "#bbbbbb"}
arms = stored["rank"]
for place, arm in enumerate(arms):
    reach = [[100 * abs(end - arm["mean"])] for end in arm["ci95"]]
    right.errorbar(place, 100 * arm["mean"], yerr=reach, fmt="o", color=colors[arm["role"]], capsize=4, markersize=8)
    right.annotate(
        f"{100 * arm['mean']:.1f}", (place, 100 * arm["mean"]), (8, 0), "data", "offset points", va="center", fontsize=9
    )
right.set_xticks(range(len(arms)), [arm["name"] for arm in arms])
right.set(ylabel="test accuracy, %", title="729 networks, trained from scratch", xlim=(-0.5, len(arms) - 0.3))
for axes in (middle, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
