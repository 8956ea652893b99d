"""
Weight aligning makes old and new classes equal
===============================================

A head learns two more classes with a memory of twenty samples: their rows become longer than the old ones. Aligning
makes the mean norms equal. The right picture draws the stored claim: the accuracy on all digits after five such stages.
"""

# %%
# Ten classes, of which the last two are learned with few samples of the others.
import torch
from torch import nn
from torch.nn import functional

from weightsmith.continual import align_classifier, clip_weights_hook
from weightsmith.embedded import digits

images, labels = digits()
x, old = images.flatten(1), labels < 8
rows = torch.cat([old.nonzero().flatten()[:20], (~old).nonzero().flatten()])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10, bias=False))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
clip_weights_hook(optimizer, model[2])
for part, epochs in ((old.nonzero().flatten(), 20), (rows, 20)):
    for _ in range(epochs):
        for batch in part[torch.randperm(len(part))].split(32):
            optimizer.zero_grad()
            functional.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimizer.step()
before = model[2].weight.norm(dim=1).tolist()
gamma = align_classifier(model[2], num_old=8)
after = model[2].weight.norm(dim=1).tolist()
print(f"gamma {gamma:.2f}")

# %%
# Draw both.
import matplotlib.pyplot as plt

from weightsmith import claims

claim = next(claim for claim in claims.stored("weight-aligning") if not claim["experiment"])  # that on digits
measured = {arm["name"]: arm["mean"] for arm in claim["arms"]}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", width_ratios=(1, 1.4))
left.plot(before, "o", color="#8fb1d6", label="before")
left.plot(after, "o", color="#c8501e", label=f"aligned, gamma {gamma:.2f}")
left.axvspan(7.5, 9.5, color="0.93", zorder=0)
left.set(xlabel="class (8 and 9 are new)", ylabel="norm of its row", ylim=(0, None), xticks=range(10))
left.legend(frameon=False)
names = sorted(measured, key=measured.__getitem__)
colors = ["#c8501e" if name == "KD, clipped and aligned" else "#8fb1d6" for name in names]
right.barh(names, [100 * measured[name] for name in names], color=colors)
for row, name in enumerate(names):
    right.text(100 * measured[name] + 0.5, row, f"{100 * measured[name]:.1f}", va="center", fontsize=8)
right.set(xlabel="test accuracy on all ten digits after five stages, %", xlim=(40, 104))
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
