"""
Weights that oscillate between two levels
=========================================

In training with rounded weights a latent weight near a threshold between two levels goes back and forth. Left: the most
restless weights of a linear regression at two bits; half way only the weights near a threshold stay trainable. Right:
the stored claim, the error of the rounded weights.
"""

# %%
# One regression of 32 weights. The latent weights move, the rounded ones have four levels.
import torch
from torch import nn
from torch.nn.utils import parametrize

from weightsmith.quantize import ConfidenceGuidedAnnealing, StatsQ

torch.manual_seed(0)
target = torch.randn(1, 32)
model = nn.Linear(32, 1, bias=False)
model.weight.data.copy_(target + 0.3 * torch.randn(1, 32))
parametrize.register_parametrization(model, "weight", StatsQ(2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
history = []


def train(steps):
    for _ in range(steps):
        x = torch.randn(32, 32)
        (model(x) - x @ target.T).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(StatsQ(2).codes(model.parametrizations.weight.original.detach())[0])


train(300)
with ConfidenceGuidedAnnealing(model, optimizer):
    train(300)
codes = torch.stack(history)
changes = codes.diff(dim=0).ne(0)
print(f"changes per weight and step: {changes[:299].float().mean():.3f}, annealed {changes[299:].float().mean():.4f}")

# %%
# Draw both.
import matplotlib.pyplot as plt

from weightsmith import claims

stored = {claim["experiment"]: claim for claim in claims.stored("ofq")}
restless = changes[:299].sum(0).topk(4).indices
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1.2, 1))
for place, weight in enumerate(restless):
    left.step(range(len(codes)), codes[:, weight] - codes[:, weight].min() + 3 * place, lw=0.8)
left.axvline(300, color="black", lw=1, ls=":")
left.text(306, 7.8, "annealing", fontsize=9)
left.set(
    xlabel="step", yticks=[3 * place for place in range(4)], yticklabels=[f"weight {w}" for w in restless.tolist()]
)
left.set_title("codes of the four most restless weights", fontsize=10)
colors = {
    "StatsQ": "#bbbbbb",
    "StatsQ, a tenth of the learning rate": "#d9c48f",
    "StatsQ, all frozen": "#8fb1d6",
    "StatsQ, annealed": "#c8501e",
    "LSQ": "#3b6ea5",
}
for number, (way, color) in enumerate(colors.items()):
    values = []
    for bits in (2, 3, 4):
        means = {arm["name"]: arm["mean"] for arm in stored[f"error-{bits}-bit"]["arms"]}
        values.append(means[way] / means["StatsQ"])
    bars = right.bar([place + 0.16 * number for place in range(3)], values, 0.15, label=way, color=color)
    right.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=6)
right.set_xticks([place + 0.32 for place in range(3)], ["2 bits", "3 bits", "4 bits"])
right.set(ylabel="error of the weights, StatsQ = 1", ylim=(0, 1.5))
right.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
