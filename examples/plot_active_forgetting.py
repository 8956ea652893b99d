"""
Resetting embeddings with active forgetting
===========================================

A small BERT learns which of two words is the adjective, from their places or from the words themselves. With its
embedding reset every 100 steps it must use the places, and then solves words that it has never seen.
"""

# %%
# Train twice, with resets up to step 700 and without, and measure every 100 steps, three steps before a reset.
import torch

from weightsmith.claims.active_forgetting import BATCH, STD, POSTask, small_bert
from weightsmith.forget import EmbeddingForgetting

torch.set_num_threads(1)
curves = {}
for name in ("without resets", "resets up to step 700"):
    task, model = POSTask(0), small_bert(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    forgetting = EmbeddingForgetting(model, optimizer, every=100, until=700, std=STD)
    points = []
    for step in range(1, 1198):
        ids, targets = task.draw(BATCH)
        model(input_ids=ids, labels=targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if name != "without resets":
            forgetting.step()
        if step % 100 == 97:
            points.append([task.accuracy(model, what, 500) for what in ("val", "unseen")])
            model.train()
    curves[name] = points

# %%
# Draw the accuracy on words of training and on words that never occurred.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
colors = {"without resets": "#111111", "resets up to step 700": "#c8501e"}
for panel, which, title in zip(axes, (0, 1), ("words of training", "words never seen"), strict=True):
    for name, points in curves.items():
        steps = range(97, 100 * len(points) + 1, 100)
        panel.plot(steps, [point[which] for point in points], label=name, color=colors[name], marker=".")
    panel.set(xlabel="step", title=title)
    panel.spines[["top", "right"]].set_visible(False)
axes[0].set(ylabel="accuracy", ylim=(0, 1.02))
axes[1].legend(frameon=False, loc="upper left")
plt.show()
