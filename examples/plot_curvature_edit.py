"""
Forgetting wrong labels with the curvature edit
===============================================

A classifier learns digits of which one in ten has a wrong label, until it gives every label it was told. Keeping only
the directions of high curvature of its middle matrix makes it forget them, and what it says instead is mostly true.
"""

# %%
# Train until all labels are learned by heart, wrong ones included, and collect the curvature of the middle matrix.
import torch

from weightsmith.analyze import KroneckerFactors, collect_kfac
from weightsmith.claims.curvature_edit import Digits
from weightsmith.core.models import find_layers
from weightsmith.forget import edit_matrix

torch.set_num_threads(1)
data = Digits(0)
model = data.trained()
(layer,) = find_layers(model, "2")
weight = layer.weight.detach().clone()
factors = collect_kfac(model, [data.x], [layer], fisher="exact")[layer.name]
inputs_only = KroneckerFactors(factors.inputs_II, torch.eye(256), 1, 1.0)
print(data.scores(model))

# %%
# Edit with more and more of the curvature kept.
shares = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995, 0.999)
curves = {}
for name, chosen in (("K-FAC", factors), ("inputs alone", inputs_only)):
    points = []
    for keep in shares:
        layer.write(edit_matrix(weight, chosen, keep=keep).weight_OI)
        points.append(data.scores(model))
    curves[name] = points

# %%
# Draw what is left of the wrong labels, what comes back, and the accuracy on test digits.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
colors = {"memorized": "#111111", "recovered": "#c8501e", "test": "#2f6db3"}
words = {"memorized": "wrong label still given", "recovered": "true label instead", "test": "test accuracy"}
for panel, (name, points) in zip(axes, curves.items(), strict=True):
    for what, color in colors.items():
        panel.plot(range(len(shares)), [point[what] for point in points], label=words[what], color=color, marker=".")
    panel.set(xlabel="share of the curvature kept", title=name, xticks=range(len(shares)), xticklabels=shares)
    panel.spines[["top", "right"]].set_visible(False)
axes[0].set(ylabel="share of samples", ylim=(0, 1.02))
axes[1].legend(frameon=False, loc="upper left")
plt.show()
