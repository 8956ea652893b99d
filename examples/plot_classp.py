"""
CLASSP keeps the first task
===========================

The step of a weight that is always pushed in one direction falls as one over the number of steps with power 1, and as
its root with power 2, which is AdaGrad: after a first task of a thousand steps, a second one moves the weight by a
thousandth of the learning rate. The right picture draws the stored claim: how much of the first task is left after a
second one that every optimizer learned to the same training accuracy.
"""

# %%
# Steps of one weight with a constant gradient, and of one that a second task finds unused.
from itertools import pairwise

import torch

from weightsmith.continual import CLASSP

steps = {}
for power in (1.0, 2.0):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = CLASSP([weight], lr=0.1, power=power)
    positions = [0.0]
    for _ in range(1000):
        weight.grad = torch.ones(1)
        optimizer.step()
        positions.append(weight.item())
    steps[power] = [before - after for before, after in pairwise(positions)]
    print(f"power {power:g}: the first step is {steps[power][0]:.3f}, the last {steps[power][-1]:.2g}")

# %%
# Draw both.
import matplotlib.pyplot as plt

from weightsmith import claims

measured = {
    claim["experiment"]: {arm["name"]: arm["mean"] for arm in claim["arms"]} for claim in claims.stored("classp")
}
old, new = measured["old"], measured["new"]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1, 1.4))
for power, lengths in steps.items():
    left.loglog(range(1, 1001), lengths, label=f"power {power:g}" + (" (AdaGrad)" if power == 2 else ""))
left.set(xlabel="step", ylabel="length, with a constant gradient and lr 0.1")
left.legend(frameon=False)
names = sorted(old, key=old.__getitem__)
colors = ["#c8501e" if name == "CLASSP" else "#8fb1d6" for name in names]
right.barh(names, [100 * old[name] for name in names], color=colors)
for row, name in enumerate(names):
    right.text(
        100 * old[name] + 0.5, row, f"{100 * old[name]:.1f}  (second {100 * new[name]:.1f})", va="center", fontsize=8
    )
right.set(xlabel="test accuracy on the first task after the second, %", xlim=(60, 108))
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
