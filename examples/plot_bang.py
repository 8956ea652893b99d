"""
Averaging a network with the one it was fine-tuned from
=======================================================

A small network learns digits from varied images (noisy, patched, shifted) and is then fine-tuned on
clean ones. Fine-tuning gains accuracy on clean digits and loses accuracy on damaged ones. Averages of the two networks
keep most of both. With smoothed labels during fine-tuning (BANG) the averages are better still, because the fine-tuned
network is then not overconfident.
"""

# %%
# The digits: half for the start, half for fine-tuning, and a test set in two versions, clean and damaged.
import copy

import torch
from torch import nn

from weightsmith.core.training import default_loss, fit
from weightsmith.embedded import digits
from weightsmith.merge import bang_loss, sweep, vote_accuracy

images, labels = digits()
x = images.flatten(1)
draws = torch.Generator().manual_seed(0)


def noisy(x, size):
    return x + size * torch.randn(x.shape, generator=draws)


def patched(x, size):
    images = x.view(-1, 8, 8).clone()
    for image, (row, column) in zip(
        images, torch.randint(9 - size, (len(x), 2), generator=draws).tolist(), strict=True
    ):
        image[row : row + size, column : column + size] = 0
    return images.flatten(1)


def shifted(x):
    return x.view(-1, 8, 8).roll(1, dims=2).flatten(1)


def broad_loss(model, batch):
    inputs, targets = batch
    ways = torch.stack([inputs, noisy(inputs, 0.3), patched(inputs, 3), shifted(inputs)])
    return default_loss(model, (ways[torch.randint(4, (len(inputs),), generator=draws), range(len(inputs))], targets))


start, home, test = (
    list(zip(x[part], labels[part], strict=True)) for part in (slice(600), slice(600, 1200), slice(1200, None))
)
clean, y = x[1200:], labels[1200:]
damaged = torch.cat(
    [noisy(clean, 0.3), noisy(clean, 0.5), patched(clean, 3), patched(clean, 4), shifted(clean), 0.45 * clean]
)


def samples(inputs, targets):
    return list(zip(inputs, targets, strict=True))


id_data, ood_data = samples(clean, y), samples(damaged, y.repeat(6))

# %%
# Pretrain a network, fine-tune it twice, and measure the averages.
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
fit(base, start, loss=broad_loss, epochs=20)
losses = {"fine-tuned plainly (WiSE-FT)": default_loss, "with smoothed labels (BANG)": bang_loss(mixup_alpha=0.0)}
results = {}
for name, loss in losses.items():
    tuned = copy.deepcopy(base)
    fit(tuned, home, loss=loss, epochs=100)
    results[name] = sweep(copy.deepcopy(base), id_data, ood_data, tuned=tuned, batch_size=600)
    ratio = results[name].totals["ood_confidence_ratio"]
    print(f"{name}: logits {ratio:.1f} times those of the pretrained network on damaged digits")

# %%
# Left: each dot is an average, from the pretrained (square) to the fine-tuned network (cross); the ring is alpha = 0.5.
# Right: the paper's vote model, two networks with different weights of their votes.
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, result in results.items():
    id_curve, ood_curve = (result.curves[f"{data} accuracy"] for data in ("id", "ood"))
    (line,) = left.plot(id_curve, ood_curve, marker=".", lw=1.5, label=name)
    left.plot(id_curve[5], ood_curve[5], "o", ms=11, mfc="none", color=line.get_color())
    left.plot(id_curve[-1], ood_curve[-1], "x", ms=9, mew=2, color=line.get_color())
left.plot(id_curve[0], ood_curve[0], "ks", ms=7)
left.set(xlabel="accuracy on clean digits", ylabel="accuracy on damaged digits", title="averages of two networks")
left.legend(frameon=False, fontsize=8, loc="lower left")

scales = [1 + step / 50 for step in range(451)]
right.plot(scales, [vote_accuracy(0.9, networks=2, scale=scale) for scale in scales], lw=1.5, label="both together")
right.axhline(vote_accuracy(0.9), color="grey", ls="--", lw=1, label="one alone")
right.set(xlabel="weight of the second network's votes", ylabel="accuracy", title="vote model, p = 0.9")
right.legend(frameon=False, fontsize=8)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
