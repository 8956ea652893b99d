"""
Continual: how does a network learn the next task and keep the last?
====================================================================

Tasks come one after another, and the data of the first are gone when the second comes. Does a penalty on the weights
help, or a handful of kept samples?
"""

# %%
# Scikit-learn's digits in two tasks: first 0 to 4, then 5 to 9.
import copy

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import ConcatDataset, TensorDataset

from weightsmith.continual import EWC, Replay
from weightsmith.core.metrics import accuracy
from weightsmith.core.training import fit
from weightsmith.embedded import digits

torch.set_num_threads(1)
images, classes = digits()
x = images.flatten(1)
first, second = classes < 5, classes >= 5
tasks = [TensorDataset(x[part][:600], classes[part][:600]) for part in (first, second)]
tests = [[(x[part][600:], classes[part][600:])] for part in (first, second)]
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
fit(base, tasks[0], epochs=15, learning_rate=2e-3, batch_size=50)
print(f"after the first task: {accuracy(base, tests[0]):.3f}")

# %%
# Three ways through the second task.
penalty = EWC(strength=1000.0)
penalty.consolidate(base, [(image[None], label[None]) for image, label in tasks[0]])  # the Fisher of single samples
replay = Replay(per_class=5, generator=torch.Generator().manual_seed(0))
replay.add([(image, int(label)) for image, label in tasks[0]])
kept = TensorDataset(torch.stack([image for image, _ in replay]), torch.tensor([label for _, label in replay]))


def plain(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


ways = {
    "plain training": (tasks[1], plain),
    "EWC": (tasks[1], lambda model, batch: plain(model, batch) + penalty(model)),
    f"replay of {len(replay)} images": (ConcatDataset([tasks[1], *[kept] * 10]), plain),
}
scores = {}
for name, (data, loss) in ways.items():
    model = copy.deepcopy(base)
    fit(model, data, loss=loss, epochs=8, learning_rate=1e-3, batch_size=50)
    scores[name] = [accuracy(model, test) for test in tests]
    print(f"{name}: first task {scores[name][0]:.3f}, second task {scores[name][1]:.3f}")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
for place, label in enumerate(("first task", "second task")):
    values = [row[place] for row in scores.values()]
    bars = axes.bar([number + 0.38 * place for number in range(3)], values, 0.36, label=label)
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
axes.set_xticks([0.19, 1.19, 2.19], [*scores])
axes.set(ylabel="test accuracy", ylim=(0, 1.15))
axes.legend(frameon=False, ncols=2)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** When classes come in turn, a few kept samples are worth more than a penalty on the weights. If no
# sample may be kept, put :class:`weightsmith.continual.DiscreteKeyValueBottleneck` behind a frozen encoder.
