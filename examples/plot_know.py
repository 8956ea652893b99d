"""
Predicting weights with KNOW
============================

A small network learns the digits 0 to 4 and is made to forget on ever smaller subsets. Its weights are predicted one
and three steps in the other direction and fine-tuned on 50 images of the digits 5 to 9. The picture shows what
that is worth, beside the control: the trained weights, shrunk to the norms of the predicted ones.
"""

# %%
# Train, forget, predict, transfer: one network, three draws of the 50 images. The claim has ten networks.
import warnings

import torch

from weightsmith.claims.know import DigitsTask
from weightsmith.predict import KnowPredictor, matched_shrink

warnings.simplefilter("ignore", UserWarning)  # that layers shrink is what we look at
tasks = [DigitsTask.make(seed) for seed in (100,)]
steps = (0, 1, 3)
accuracy = {}
for name in ("paper", "ours"):
    predictor = KnowPredictor.from_pretrained(name)
    for task in tasks:
        trained = task.trajectory[-1]
        for step in steps:
            predicted = predictor.retrodict(task.trajectory, steps=step)
            accuracy.setdefault(name, []).append(task.transfer(predicted))
            if name == "ours":
                shrunk = matched_shrink(trained, predicted)
                accuracy.setdefault("ours: matched shrink", []).append(task.transfer(shrunk))
means = {name: torch.tensor(values).view(len(tasks), -1).mean(0) for name, values in accuracy.items()}
for name, mean in means.items():
    print(f"{name:22}", " ".join(f"{value:.3f}" for value in mean.tolist()))

# %%
# What the predictors do to kernels: twelve of the last layer, each scaled to its own range.
import matplotlib.pyplot as plt

layer = "6.weight"
trajectory = tasks[0].trajectory
rows = {
    "forgot most": trajectory[0][layer],
    "trained": trajectory[-1][layer],
    "paper x8": KnowPredictor.from_pretrained("paper").retrodict(trajectory, steps=3)[layer],
    "ours x8": KnowPredictor.from_pretrained("ours").retrodict(trajectory, steps=3)[layer],
}
figure = plt.figure(figsize=(10, 4), layout="constrained")
left, right = figure.subfigures(1, 2)
axes = left.subplots()
for name, mean in means.items():
    control = name.endswith("shrink")
    color = "tab:blue" if name.startswith("paper") else "tab:orange"
    axes.plot(steps, mean, color=color, ls=":" if control else "-", marker="" if control else "o", label=name)
axes.set_xticks(steps, ["trained", "x2", "x8"])
axes.set(ylabel="accuracy on new digits", title="transfer with 50 images")
axes.legend(frameon=False, fontsize=8)
axes.spines[["top", "right"]].set_visible(False)
for cell, (name, kernels) in zip(right.subplots(len(rows), 1), rows.items(), strict=True):
    # Twelve kernels side by side, an empty column between them.
    scaled = kernels[0, :12] / kernels[0, :12].abs().amax((1, 2), keepdim=True)
    gap = torch.full((12, 3, 1), float("nan"))
    strip = torch.cat([scaled, gap], dim=2).transpose(0, 1).flatten(1)
    cell.imshow(strip, cmap="RdBu", vmin=-1, vmax=1)
    cell.set_axis_off()
    norm = kernels.norm() / trajectory[-1][layer].norm()
    cell.set_title(f"{name}, norm {norm:.2f}", loc="left", fontsize=9)
plt.show()
