"""
A key-value bottleneck keeps the first classes
==============================================

Eight classes in the unit square arrive in four tasks of two. The bottleneck changes only the values whose keys are near
the samples of a task; an MLP changes its whole function. The right picture draws the stored claim on digits.
"""

# %%
# Learn the four tasks in turn.
import torch
from torch import nn
from torch.nn import functional

from weightsmith.claims.dkvb import CENTERS
from weightsmith.continual import DiscreteKeyValueBottleneck

generator = torch.Generator().manual_seed(0)
torch.manual_seed(0)
bottleneck = DiscreteKeyValueBottleneck(2, 8, codebooks=1, pairs=400, key_dim=2, splitter="chunk", generator=generator)
bottleneck.init_keys(torch.rand(20_000, 2, generator=generator), passes=1, batch_size=100, generator=generator)
mlp = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 8))
optimizer = torch.optim.Adam(mlp.parameters(), lr=1e-3)
points, classes = [], []
for task, pair in enumerate(CENTERS):
    x = torch.cat([torch.tensor(center) + 0.035 * torch.randn(100, 2, generator=generator) for center in pair])
    y = torch.tensor([task] * 100 + [task + 4] * 100)
    bottleneck.partial_fit(x, y, epochs=30, generator=generator)
    for _ in range(1000):
        optimizer.zero_grad()
        functional.cross_entropy(mlp(x), y).backward()
        optimizer.step()
    points.append(x)
    classes.append(y)
x, y = torch.cat(points), torch.cat(classes)
print(f"bottleneck {(bottleneck.predict(x) == y).float().mean():.0%}, MLP {(mlp(x).argmax(1) == y).float().mean():.0%}")

# %%
# Draw both.
import matplotlib.pyplot as plt

from weightsmith import claims

side = torch.linspace(0, 1, 200)
grid = torch.cartesian_prod(side, side)
regions = {"bottleneck": bottleneck.predict(grid), "MLP": mlp(grid).argmax(1)}
measured = {claim["experiment"]: {arm["name"]: arm["mean"] for arm in claim["arms"]} for claim in claims.stored("dkvb")}
figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained", width_ratios=(1, 1, 1.5))
for panel, (name, found) in zip(axes, regions.items(), strict=False):
    image = found.view(200, 200).T
    panel.imshow(image, origin="lower", extent=(0, 1, 0, 1), cmap="tab10", vmin=0, vmax=9, alpha=0.45)
    panel.scatter(*x.T, c=y, cmap="tab10", vmin=0, vmax=9, s=4)
    panel.set(title=f"{name} after four tasks", xticks=[], yticks=[])
digits = measured["digits"]
names = sorted(digits, key=digits.__getitem__)
colors = ["#c8501e" if name in ("bottleneck", "bottleneck, 256 codebooks") else "#8fb1d6" for name in names]
axes[2].barh(names, [100 * digits[name] for name in names], color=colors)
for row, name in enumerate(names):
    axes[2].text(100 * digits[name] + 1, row, f"{100 * digits[name]:.1f}", va="center", fontsize=8)
axes[2].set(xlabel="test accuracy on all ten digits after five splits, %", xlim=(0, 112))
axes[2].spines[["top", "right"]].set_visible(False)
plt.show()
