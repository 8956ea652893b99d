"""
Forget: how do I remove a class from a trained classifier?
==========================================================

One class must go, now, without training again. Classwise pruning removes the weights that serve this class.
"""

# %%
# A classifier of scikit-learn's digits.
import copy

import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith.core.metrics import accuracy
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.forget import classwise

torch.set_num_threads(1)
images, classes = digits()
x = images.flatten(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
fit(model, TensorDataset(x[:1200], classes[:1200]), epochs=15, learning_rate=1e-3, batch_size=50)
samples = [(image, label) for image, label in zip(x[:300], classes[:300], strict=True)]
held, held_classes = x[1200:], classes[1200:]

# %%
# Remove the three, with more and more of the last layers' weights.
fractions, forgotten, others = (0.02, 0.05, 0.1, 0.2, 0.4), [], []
for fraction in fractions:
    edited = copy.deepcopy(model)
    classwise(edited, samples, class_name="3", fraction=fraction, layers=1)
    three = held_classes == 3
    forgotten.append(accuracy(edited, [(held[three], held_classes[three])]))
    others.append(accuracy(edited, [(held[~three], held_classes[~three])]))
    print(f"{fraction:.0%} of the layer: threes {forgotten[-1]:.2f}, other digits {others[-1]:.3f}")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.plot([100 * each for each in fractions], forgotten, "o-", color="#c8501e", label="threes")
axes.plot([100 * each for each in fractions], others, "o-", color="#2f6db3", label="other digits")
axes.set(xlabel="share of the layer, %", ylabel="test accuracy", ylim=(-0.02, 1.02))
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** Look at both curves, what is forgotten and what must stay, before you choose a share. What is no
# longer predicted may still be in the features: for samples in place of a class see
# :func:`weightsmith.forget.blindspot`, for language models :func:`weightsmith.forget.wagle`.
