"""
Adapt: how few weights must I train for a new task?
===================================================

You have a network and a new task with little data. LIFT trains five per cent of the weights, those that are largest
after a low-rank approximation. How does that compare with training all?
"""

# %%
# A network that knows the digits 0 to 4, and 60 images of the digits 5 to 9.
import copy

import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith.adapt import LIFTAdamW, lift_groups
from weightsmith.core.metrics import accuracy
from weightsmith.core.training import fit
from weightsmith.embedded import digits

torch.set_num_threads(1)
images, classes = digits()
x = images.flatten(1)
old, new = classes < 5, classes >= 5
few = TensorDataset(x[new][:60], classes[new][:60])
tests = {"new digits": [(x[new][300:], classes[new][300:])], "old digits": [(x[old][300:], classes[old][300:])]}

torch.manual_seed(0)
base = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
fit(base, TensorDataset(x[old][:300], classes[old][:300]), epochs=20, learning_rate=2e-3, batch_size=50)

# %%
# Train all weights, or five per cent of each matrix and the head.
scores = {"before": {name: accuracy(base, test) for name, test in tests.items()}}
for name in ("all weights", "LIFT, 5 %"):
    model = copy.deepcopy(base)
    if name == "all weights":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    else:
        groups = lift_groups(model, density=0.05, exclude="4", dense="4.*")
        optimizer = LIFTAdamW(groups, lr=3e-3, update_interval=50)
    fit(model, few, optimizer=optimizer, epochs=100, batch_size=20)
    pairs = zip(model.parameters(), base.parameters(), strict=True)
    moved = sum(int((new != old).sum()) for new, old in pairs)
    scores[name] = {test_name: accuracy(model, test) for test_name, test in tests.items()}
    print(f"{name}: {moved:,} weights moved, {scores[name]}")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for place, test in enumerate(tests):
    bars = axes.bar(
        [number + 0.38 * place for number in range(3)], [row[test] for row in scores.values()], 0.36, label=test
    )
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
axes.set_xticks([0.19, 1.19, 2.19], [*scores])
axes.set(ylabel="test accuracy", ylim=(0, 1.15))
axes.legend(frameon=False, ncols=2)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** Few weights suffice for a new task; whether the old one is kept is another question, for
# :mod:`weightsmith.continual`. The optimizer works in any training loop; ``weightsmith adapt lift MODEL OUT
# --training FILE`` is the same for a language model.
