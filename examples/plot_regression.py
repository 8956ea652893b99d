"""
Unlearning samples of a regression
==================================

A small network reads handwritten digits as numbers. The digits 0, 1 and 2 are to be forgotten: the network should
predict for them what a network predicts that never saw them.
"""

# %%
# Train the network, and another one without the digits to forget, which nobody has in practice.
import copy

import torch

from weightsmith.claims.regression import BATCH, draw_digits, trained
from weightsmith.forget import blindspot, finetune_on_retain, gaussian, predict_values

torch.set_num_threads(1)
digits = draw_digits(0)
original = trained([*digits.forget, *digits.retain], 0)
retrained = trained(digits.retain, 1)

# %%
# Unlearn in five epochs. Blindspot also trains its helper, for four.
options = {"epochs": 5, "batch_size": BATCH}
models = {name: copy.deepcopy(original) for name in ("fine-tune on the rest", "Gaussian labels", "Blindspot")}
finetune_on_retain(models["fine-tune on the rest"], digits.retain, **options)
gaussian(models["Gaussian labels"], digits.forget, digits.retain, **options)
helper = {"helper_epochs": 4, "helper_learning_rate": 1e-3}
blindspot(models["Blindspot"], digits.forget, digits.retain, **helper, **options)

# %%
# Draw what each predicts for the forgotten digits.
import matplotlib.pyplot as plt

networks = {"original": original, **models}
colors = ("#111111", "#8a8178", "#2f6db3", "#c8501e")
gold = predict_values(retrained, digits.forget).flatten().numpy()
figure, axes = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained", sharey=True, sharex=True)
for panel, (name, model), color in zip(axes, networks.items(), colors, strict=True):
    values = predict_values(model, digits.forget).flatten().numpy()
    panel.hist(gold, bins=24, range=(-1, 10), color="#d9d4cc", label="retrained without them")
    panel.hist(values, bins=24, range=(-1, 10), histtype="step", linewidth=1.6, color=color)
    panel.set(title=name, xlabel="prediction")
    panel.spines[["top", "right"]].set_visible(False)
axes[0].set(ylabel="forgotten digits 0, 1, 2", ylim=(0, 170))
axes[0].legend(frameon=False, loc="upper right")
plt.show()
