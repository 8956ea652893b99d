"""
Phases of training
==================

Perceptrons of several widths learn digits with several batch sizes, three seeds each. Training loss, a curve between
the seeds and the similarity of their outputs tell the phase of every cell; a network of one's own is put on the map.
"""

# %%
# Train and measure the zoo. A cell takes seconds; a run that was interrupted goes on where it was.
import os
import tempfile
from pathlib import Path

import torch
from torch import nn

from weightsmith.analyze import train_phase_zoo
from weightsmith.embedded import digits

torch.set_num_threads(1)
images, classes = digits()
pairs = list(zip(images.flatten(1), classes, strict=True))
training, test = pairs[:600], pairs[1000:]


def build(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


folder = Path(os.environ.get("PHASES_EXAMPLE", tempfile.mkdtemp()))
zoo = train_phase_zoo(
    build,
    training,
    test,
    folder / "zoo",
    load={"width": [2, 4, 8, 16, 32, 64]},
    temperature={"batch_size": [16, 32, 64, 128, 256]},
    train_epochs=30,
    epochs=20,
    hessian_samples=0,
)

# %%
# Draw the map, what the phases mean for new data, and how many cells change with the threshold of a barrier.
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb

COLORS = {
    "I": "#b5523b",
    "II": "#e0a458",
    "III": "#7a6c9d",
    "IV-A": "#8fb8de",
    "IV-B": "#4f9d69",
    "diverged": "#9a9a9a",
}
table = zoo.table()
widths, batches = sorted(table["width"].unique()), sorted(table["batch_size"].unique())
figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 3.9), layout="constrained", gridspec_kw={"width_ratios": (1.2, 1, 1)}
)
cells = torch.zeros(len(batches), len(widths), 3)
for _, cell in table.iterrows():
    row, column = batches.index(cell["batch_size"]), widths.index(cell["width"])
    cells[row, column] = torch.tensor(to_rgb(COLORS[cell["phase"]]))
    left.text(column, row, cell["phase"], ha="center", va="center", fontsize=9)
left.imshow(cells, origin="lower", aspect="auto")
left.plot(2, 3, "o", markersize=30, fillstyle="none", color="#111111", markeredgewidth=2)
left.set(xticks=range(len(widths)), xticklabels=widths, yticks=range(len(batches)), yticklabels=batches)
left.set(xlabel="width (load)", ylabel="batch size (temperature falls)", title="phases; circle: width 8, batch 128")

for phase, part in table[~table["diverged"]].groupby("phase"):
    middle.plot(part["cka"], 100 * part["test_accuracy"], "o", color=COLORS[phase], label=phase)
middle.set(xlabel="similarity of the outputs of seeds (CKA)", ylabel="test accuracy, %", title="what a phase means")
middle.legend(frameon=False)

thresholds = [0.25, 0.5, 1, 2, 4, 8]
counts = [zoo.phases(tau_mc=threshold) for threshold in thresholds]
floor = [0] * len(thresholds)
for phase, color in COLORS.items():
    heights = [found.count(phase) for found in counts]
    right.bar(range(len(thresholds)), heights, bottom=floor, color=color, label=phase)
    floor = [low + height for low, height in zip(floor, heights, strict=True)]
right.set(xticks=range(len(thresholds)), xticklabels=thresholds, xlabel="threshold of a barrier, points of error")
right.set(ylabel="cells", title="sensitivity to a threshold")
for axes in (middle, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
