"""
Unlearning through a mask with WAGLE
====================================

A small network knows 960 facts about 120 invented people by heart. The facts of 12 are to be forgotten, those of 72 are
retained; the facts of the other 36 are in neither set. What happens to them is what unlearning costs.
"""

# %%
# Learn the facts, and mark 80 % of the weights: those that WAGLE chooses, and random ones.
import copy

import torch

from weightsmith.claims.wagle import EPOCHS, GAMMA, Memory, accuracy, draw_facts
from weightsmith.core.training import fit
from weightsmith.forget import attribute_weights, unlearn

torch.set_num_threads(1)
facts = draw_facts(0)
base = Memory(0)
fit(base, facts.all, learning_rate=3e-3, epochs=60, batch_size=64)
masks = {"all weights": None}
for method in ("wagle", "random"):
    scores = attribute_weights(base, facts.forget, facts.retain, method=method, gamma=GAMMA)
    masks[f"{method}, 80 %"] = scores.top(0.8)

# %%
# Unlearn with NPO through each.
curves = {}
for name, mask in masks.items():
    model = copy.deepcopy(base)
    points = []

    def watch(step, loss, model=model, points=points):
        if step % 3 == 0:
            points.append((accuracy(model, facts.forget), accuracy(model, facts.other)))

    options = {"learning_rate": 1e-3, "weight_decay": 0.0, "scheduler": "constant", "warmup": 0.0}
    unlearn(model, facts.forget, facts.retain, mask=mask, epochs=EPOCHS, batch_size=32, after_step=watch, **options)
    curves[name] = points

# %%
# Draw what is forgotten and what goes with it.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
colors = {"all weights": "#111111", "wagle, 80 %": "#c8501e", "random, 80 %": "#8a8178"}
for panel, which, title in zip(axes, (0, 1), ("facts to forget", "facts in neither set"), strict=True):
    for name, points in curves.items():
        steps = range(3, 3 * len(points) + 1, 3)
        panel.plot(steps, [point[which] for point in points], label=name, color=colors[name])
    panel.set(xlabel="step", title=title)
    panel.spines[["top", "right"]].set_visible(False)
axes[0].set(ylabel="accuracy", ylim=(0, 1.02))
axes[1].legend(frameon=False)
plt.show()
