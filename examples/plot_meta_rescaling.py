"""
Weights that find wrong labels
==============================

A network learns 1200 handwritten digits of which three in ten carry a wrong class. Every sample's weight is learned
during training, from the same noisy data. The picture follows the weights of clean and of flipped samples.
"""

# %%
# Flip, train, and note the weights of every epoch.
import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.train import MetaRescaler

images, classes = digits()
x, true = images[:1200].flatten(1), classes[:1200]
generator = torch.Generator().manual_seed(0)
flipped = torch.rand(1200, generator=generator) < 0.3
noisy = torch.where(flipped, (true + torch.randint(1, 10, (1200,), generator=generator)) % 10, true)
data = TensorDataset(x, noisy, torch.arange(1200))
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
loss = MetaRescaler(data, 10, inner_learning_rate=0.1, reduction="sum")
history = []


def note(_: nn.Module) -> float:
    history.append(loss.scores.clone())
    return 0.0


fit(model, data, loss=loss, epochs=15, learning_rate=3e-3, evaluate=note)

# %%
# Draw the means, and the last epoch's weights of all samples.
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, who in (("clean", ~flipped), ("flipped", flipped)):
    epochs = range(1, len(history) + 1)
    left.plot(epochs, [scores[who].mean() for scores in history], "o-", ms=4, label=name)
    right.hist(history[-1][who], bins=torch.linspace(0, 1, 41), histtype="step", density=True, label=name)
suspects = history[-1].argsort()[: int(flipped.sum())]
print(f"of the {len(suspects)} lowest weights {flipped[suspects].float().mean():.0%} belong to flipped samples")
left.set(xlabel="epoch", ylabel="mean weight", ylim=(0, 1))
right.set(xlabel="weight after the last epoch", ylabel="density")
for axes in (left, right):
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
