"""
How much a learngene retains at every depth
===========================================

A teacher of ten residual blocks is distilled into eight positions that share four stages. Unrolled to any depth,
before any training of their own, the descendants keep most of what it knows; four blocks that were distilled without
sharing do so only near the depth they were trained at, and stages out of order lose it.
"""

# %%
# A teacher on digits, and the two students: one with shared stages, one whose blocks are its own.
import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith import claims
from weightsmith.core.metrics import accuracy
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.grow import Learngene, distil, retention, share_stages

torch.set_num_threads(1)
images, classes = digits()
x = images.flatten(1)
train, test = TensorDataset(x[:1200], classes[:1200]), [(x[1200:], classes[1200:])]


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width=48):
        super().__init__()
        self.inner = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 96), nn.ReLU(), nn.Linear(96, width))

    def forward(self, x):
        """Add what the block computes."""
        return x + self.inner(x)


def network(depth):
    return nn.Sequential(nn.Linear(64, 48), *[Block() for _ in range(depth)], nn.RMSNorm(48), nn.Linear(48, 10))


torch.manual_seed(0)
teacher = network(10)
fit(teacher, train, epochs=20, learning_rate=2e-3, batch_size=50)
genes = {}
for name, depth, stages in (("shared stages", 8, (2, 2, 2, 2)), ("plain expansion", 4, (1, 1, 1, 1))):
    student = network(depth)
    genes[name] = Learngene(student, share_stages(student, stages, stack="[1:-2]"))
    distil(student, teacher, train, learning_rate=2e-3, weight_decay=0.0, warmup=0.0, epochs=30, batch_size=50)

# %%
# Retention of each depth, here and in the stored claim.
import matplotlib.pyplot as plt

depths = range(4, 17)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
colors = {"shared stages": "#c8501e", "plain expansion": "#2f6db3", "stages out of order": "#8a8178"}
for name, gene in genes.items():
    scores = [row["score"] for row in retention(gene, lambda model: accuracy(model, test), depths).layers]
    left.plot(depths, scores, "o-", ms=4, color=colors[name], label=name)
shuffled = [
    accuracy(genes["shared stages"].expand(depth, assignment=order, strict_order=False), test)
    for depth in depths
    for order in [[(2, 0, 3, 1)[4 * block // depth] for block in range(depth)]]
]
left.plot(depths, shuffled, "o-", ms=4, color=colors["stages out of order"], label="stages out of order")
left.axhline(accuracy(teacher, test), color="#111111", lw=1, ls=":", label="teacher, 10 blocks")
left.set(xlabel="blocks", ylabel="test accuracy, no training", title="digits", ylim=(0, 1))
left.legend(frameon=False, fontsize=8)
claim = next(stored for stored in claims.stored("learngene") if stored["experiment"] == "initial")
mean = {arm["name"]: arm["mean"] for arm in claim["arms"]}
for arm, color in (
    ("sws", "#c8501e"),
    ("share all", "#e8a33d"),
    ("TLEG", "#4a9c6d"),
    ("plain expansion", "#2f6db3"),
    ("selection", "#7a5ba6"),
    ("stages shuffled", "#8a8178"),
):
    right.plot((4, 6, 10), [mean[f"{arm}, {depth} blocks"] for depth in (4, 6, 10)], "o-", ms=4, color=color, label=arm)
right.axhline(mean["teacher"], color="#111111", lw=1, ls=":")
right.set(xlabel="blocks", ylabel="test accuracy, no training", title="the stored claim's synthetic task")
right.legend(frameon=False, fontsize=8)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
