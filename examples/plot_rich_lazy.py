"""
Rich or lazy
============

How far does training turn the tangent kernel of each layer? Linear theory tells it from the singular values of the
initial weights; a recurrent network confirms the order; and a perceptron shows it layer by layer while it learns.
"""

# %%
# Two-layer linear networks: what the closed form expects of initial weights of each rank, and what training does.
import torch

from weightsmith.analyze import LazinessProbe, expected_kernel_alignment, low_rank_
from weightsmith.claims.rich_lazy import trained_alignment

torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
ranks, size = (1, 2, 3, 5, 7, 10, 15, 20), 20
drawn = torch.randn(50, size, generator=draw, dtype=torch.float64)
starts = [low_rank_(drawn.clone(), rank, spectrum=[1.0] * rank) for rank in ranks]
expected = [expected_kernel_alignment(start) for start in starts]
measured = []
for start in starts:
    small = 1e-3 * start / torch.linalg.matrix_norm(start, 2)
    targets = torch.randn(5, size, generator=draw, dtype=torch.float64)
    measured.append([trained_alignment(small, torch.zeros(50).double(), target / target.norm()) for target in targets])

# %%
# A perceptron learns digits from small initial weights; its kernels are compared with the first ones every few steps.
from itertools import pairwise

from torch import nn

from weightsmith.core.training import fit
from weightsmith.embedded import digits

images, classes = digits()
x = images.flatten(1)
torch.manual_seed(0)
sizes = (64, 64, 64, 64, 64, 10)
layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())][:-1]
model = nn.Sequential(*layers)
probe = LazinessProbe(model, [x[:48]])
before = probe.snapshot()
columns = {}


def look(step: int, loss: float) -> None:
    if step % 25 == 0:
        columns[step] = [row["kernel_alignment"] for row in probe.compare(before).layers]


data = list(zip(x[:1200], classes[:1200], strict=True))
fit(model, data, epochs=8, batch_size=32, learning_rate=1e-3, scheduler="constant", after_step=look)

# %%
# Draw both, and between them the recurrent networks of the claim.
import matplotlib.pyplot as plt

from weightsmith.claims import stored

figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 3.8), layout="constrained", gridspec_kw={"width_ratios": (1, 1.15, 1.2)}
)
left.plot(ranks, expected, color="#111111", label="closed form")
for number, points in enumerate(zip(*measured, strict=True)):
    left.plot(ranks, points, ".", color="#c8501e", alpha=0.7, label="measured, five tasks" if number == 0 else None)
left.set(xlabel="rank of the initial weights", ylabel="kernel alignment", ylim=(0, 1.03), title="linear networks")
left.legend(frameon=False)

claim = next(each for each in stored("rich-lazy") if each["experiment"] == "kernel")
arms = claim["arms"][::-1]
places = range(len(arms))
colors = {"method": "#c8501e", "baseline": "0.6", "control": "#2f6db3"}
middle.barh(places, [arm["mean"] for arm in arms], color=[colors[arm["role"]] for arm in arms])
for place, arm in zip(places, arms, strict=True):
    middle.plot(arm["values"], [place] * len(arm["values"]), "|", color="#111111", alpha=0.6)
middle.set(
    yticks=places, yticklabels=[arm["name"] for arm in arms], xlabel="kernel alignment", title="recurrent networks"
)

steps = list(columns)
cells = torch.tensor([columns[step] for step in steps]).T
image = right.imshow(cells, aspect="auto", cmap="magma", vmin=0, vmax=1, interpolation="nearest")
chosen = range(0, len(steps), 3)
right.set(xticks=chosen, xticklabels=[steps[n] for n in chosen], yticks=range(5), yticklabels=range(1, 6))
right.set(xlabel="step", ylabel="layer", title="a perceptron learns digits")
figure.colorbar(image, label="kernel alignment with the start")
for axes in (left, middle):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
