"""
What the temperature of PLD does
================================

PLD sums over the ranks of a sample's classes, each weighted by the teacher's confidence in the class at that rank. The
temperature decides how much of the weight is on the label: all of it is cross-entropy, hardly any is a ranking.
"""

# %%
# A teacher on digits, overconfident on its training data.
import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith import claims
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.train import suggest_temperature
from weightsmith.train._pld import label_weight

images, classes = digits()
x = images.flatten(1)
torch.manual_seed(0)
teacher = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
fit(teacher, TensorDataset(x[:1200], classes[:1200]), epochs=25, learning_rate=2e-3, batch_size=50)
logits = teacher(x[:1200]).detach()
print(f"labels weigh 0.4 at temperature {suggest_temperature(logits, classes[:1200]):.2f}")

# %%
# The weights of the ranks, and the accuracy of students in the stored claim.
import matplotlib.pyplot as plt

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
for tau in (1, 2, 4, 8):
    ranked = (logits / tau).softmax(1).sort(1, descending=True).values.mean(0)
    left.plot(range(1, 11), ranked, "o-", ms=4, label=f"temperature {tau}")
left.set(xlabel="rank of the class", ylabel="mean weight")
left.legend(frameon=False)
taus = torch.logspace(-0.5, 1.5, 30)
middle.semilogx(taus, [label_weight(logits, classes[:1200], tau.item()) for tau in taus])
middle.set(xlabel="temperature", ylabel="mean weight of the label")
for claim in claims.stored("pld"):
    mean = {arm["name"]: arm["mean"] for arm in claim["arms"]}
    for loss, style in (("PLD", "o-"), ("KD", "s--")):
        points = sorted((int(n.split()[-1]), v) for n, v in mean.items() if n.startswith(f"{loss}, tau"))
        right.plot(*zip(*points, strict=True), style, label=f"{loss}, {claim['experiment']}")
right.set_xscale("log", base=2)
right.set_xticks([1, 2, 4, 8, 16], labels=["1", "2", "4", "8", "16"])
right.set(xlabel="temperature", ylabel="test accuracy of the student")
right.legend(frameon=False, fontsize=8)
for axes in (left, middle, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
