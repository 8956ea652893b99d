"""
Networks that survive the loss of weights
=========================================

Two networks learn 150 handwritten digits, one with plain weights and one whose weights pass through a bounded odd
function while it trains. Then more and more of the largest weights of every layer are set to zero.
"""

# %%
# Train both, and fold the function away.
import copy

import torch
from torch import nn
from torch.utils.data import TensorDataset

from weightsmith.core.metrics import accuracy
from weightsmith.core.models import find_layers
from weightsmith.core.training import fit
from weightsmith.embedded import digits
from weightsmith.train import compand, compander_parameter_groups, fold_companders, weight_statistics

images, classes = digits()
x = images.flatten(1)
train, test = TensorDataset(x[:150], classes[:150]), [(x[150:], classes[150:])]
networks = {}
for name in ("plain", "companded"):
    torch.manual_seed(0)
    layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    model = networks[name] = nn.Sequential(*layers)
    if name == "companded":
        compand(model)
    groups = compander_parameter_groups(model, lr=0.05, weight_decay=5e-4)
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    fit(model, train, optimizer=optimizer, scheduler="cosine", epochs=100, batch_size=32)
    if name == "companded":
        fold_companders(model)
    told = weight_statistics(model)["2"]
    print(f"{name}: accuracy {accuracy(model, test):.3f}, largest weight {told['max']:.2f}")


# %%
# Take weights away and measure.
def without_largest(model: nn.Module, share: float) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in find_layers(model):
        weight = layer.weight.data.view(-1)
        weight[weight.abs().topk(int(share * len(weight))).indices] = 0
    return model


shares = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2]
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, model in networks.items():
    weights = model[2].weight.detach().flatten()
    left.hist(weights, bins=torch.linspace(-0.2, 0.2, 101), histtype="step", label=name)
    right.plot([100 * s for s in shares], [accuracy(without_largest(model, s), test) for s in shares], "o-", label=name)
left.set(xlabel="weight of the second layer", ylabel="weights", yscale="log")
right.set(xlabel="largest weights taken away, %", ylabel="test accuracy")
for axes in (left, right):
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
