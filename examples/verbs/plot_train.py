"""
Train: how does a small network learn from a large one?
=======================================================

You have a good large network and need a small one. The teacher's outputs say more than the labels: PLD has the
student rank all classes as the teacher does. Is that better than the labels alone, or than the usual divergence?
"""

# %%
# A teacher of 256 units on scikit-learn's digits; for the student only 100 labeled images are left.
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from weightsmith.core.metrics import accuracy
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.train import kd_loss, pld_loss

torch.set_num_threads(1)
images, classes = digits()
x = images.flatten(1)
test = [(x[1200:], classes[1200:])]
torch.manual_seed(0)
teacher = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = torch.optim.Adam(teacher.parameters(), lr=2e-3)
fit(teacher, TensorDataset(x[:1200], classes[:1200]), optimizer=optimizer, epochs=20, batch_size=50)
print(f"teacher: {accuracy(teacher, test):.3f}")


# %%
# Three losses of the same students.
def teaching(loss):
    def of_batch(model, batch):
        with torch.no_grad():
            ranked = teacher(batch[0])
        return loss(model(batch[0]), ranked, batch[1])

    return of_batch


losses = {
    "labels": lambda student, teacher, labels: functional.cross_entropy(student, labels),
    "divergence": lambda student, teacher, labels: kd_loss(student, teacher, labels, temperature=2.0),
    "PLD": pld_loss,
}
scores = {name: [] for name in losses}
for name, loss in losses.items():
    for seed in range(5):
        torch.manual_seed(seed)
        student = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
        few = TensorDataset(x[100 * seed :][:100], classes[100 * seed :][:100])
        fit(student, few, loss=teaching(loss), optimizer=optimizer, epochs=60, batch_size=50, seed=seed)
        scores[name].append(accuracy(student, test))
    print(f"{name}: {sum(scores[name]) / 5:.3f} from {min(scores[name]):.3f} to {max(scores[name]):.3f}")

# %%
# Five draws of the 100 images each.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for place, values in enumerate(scores.values()):
    axes.plot([place] * 5, values, "o", alpha=0.7)
    axes.plot([place - 0.2, place + 0.2], [sum(values) / 5] * 2, color="black")
axes.set_xticks(range(3), [*scores])
axes.set(ylabel="test accuracy of the student", xlim=(-0.5, 2.5))
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** Here the ranking is a point above the labels, and the divergence at its default temperature below them.
# Tune each before you compare: the claim of :func:`weightsmith.train.pld` has every loss at its best temperature.
