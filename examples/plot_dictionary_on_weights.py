"""
Dictionaries of a language model's activations and weights
==========================================================

The values that attention passes on inside SmolLM2-135M, 64 numbers per head, learn an orthonormal dictionary while the
model runs: one for every value head of a block. Being orthogonal, it can be folded into the value and the output
projection; the model then computes the same with sparser values. The rows of a weight matrix are the second example,
and show what happens where there is little to find.
"""

# %%
# Run the model block by block and learn from the inputs of one output projection. The Gram matrix of the same inputs
# gives the principal axes to compare with, and other text the rows to measure on.
import torch

from weightsmith.core.data import token_ids, token_windows
from weightsmith.core.models import Layer, get_module, observe, stream
from weightsmith.core.statistics import Gram
from weightsmith.dictionary import OnlineOrthogonalDictionary
from weightsmith.dictionary._online_orthogonal.activations import InputDictionaries, fold_rotation
from weightsmith.embedded import load, text

torch.set_num_threads(1)
BLOCK, HEADS, WIDTH = 12, 3, 64
model, tokenizer = load("smollm2")
model.float()
windows = token_windows(token_ids(tokenizer, text("calibration")), length=256, count=12, batch_size=4)
held_out = token_windows(token_ids(tokenizer, text("evaluation")), length=256, count=4, batch_size=4)

paths = {name: f"model.layers.{BLOCK}.self_attn.{name}" for name in ("v_proj", "o_proj")}
values, output = (Layer(path, get_module(model, path)) for path in paths.values())
learners = [OnlineOrthogonalDictionary(init="pca", random_state=0) for _ in range(HEADS)]
for block in stream(model, windows, include=output.name):
    block.observe(block.layers, lambda layer: InputDictionaries(layer, learners, WIDTH))
    gram = block.observe(block.layers, Gram)[output.name].gram_II


class Rows:
    """Keep a layer's inputs."""

    def __init__(self, layer):
        self.parts = []

    def update(self, x, mask):
        """Add the rows of a batch that are not padding."""
        self.parts.append(x.flatten(0, 1) if mask is None else x[mask])

    def all_reduce(self):
        """Put them together at the end."""
        self.rows = torch.cat(self.parts)


seen = observe(model, held_out, [output], Rows)[output.name].rows
per_head = [part.reshape(-1, WIDTH) for part in seen.chunk(HEADS, dim=1)]

# %%
# How sparse are the values, and how much is lost with the eight largest of 64 entries? Compared are the unchanged
# coordinates, the principal axes of each head, and the dictionaries. Unit directions: -1 is dense, -0.8 is Gaussian.
TOP = (1, 2, 4, 8, 16, 32)


def axes_of(head):
    """The eigenvectors of a value head's Gram matrix, summed over the query heads that share it."""
    size = gram.shape[0] // HEADS
    blocks = gram[head * size : (head + 1) * size, head * size : (head + 1) * size]
    blocks = blocks.reshape(size // WIDTH, WIDTH, size // WIDTH, WIDTH)
    return torch.linalg.eigh(sum(blocks[i, :, i] for i in range(size // WIDTH)))[1].T


def measure(rows, components):
    """The score of the codes, and the share of energy lost by keeping few of them."""
    coder = OnlineOrthogonalDictionary(init=components)
    codes = rows @ components.T
    energy = codes.square().sum()
    lost = [float((codes - coder.keep_largest(codes, k)).square().sum() / energy) for k in TOP]
    l1 = codes.abs().sum(1) / (codes.norm(dim=1).clamp(min=1e-12) * rows.shape[1] ** 0.5)
    return float(-l1.mean()), lost


bases = {
    "unchanged": [torch.eye(WIDTH)] * HEADS,
    "principal axes": [axes_of(head) for head in range(HEADS)],
    "dictionary": [torch.from_numpy(learner.components_) for learner in learners],
}
activations = {}
for name, components in bases.items():
    each = [measure(rows, component) for rows, component in zip(per_head, components, strict=True)]
    activations[name] = [sum(lost[k] for _, lost in each) / HEADS for k in range(len(TOP))]
    score = sum(score for score, _ in each) / HEADS
    print(f"values, {name}: score {score:.3f}, 8 of 64 lose {activations[name][3]:.1%}")

# %%
# Fold the dictionaries into the two projections. The logits do not change.
with torch.no_grad():
    before = model(**held_out[0]).logits
    fold_rotation(values, output, torch.stack([component.T for component in bases["dictionary"]]))
    after = model(**held_out[0]).logits
difference = float((after - before).abs().max())
print(f"largest change of a logit: {difference:.1e} of logits up to {float(before.abs().max()):.0f}")
assert difference < 1e-3

# %%
# The same for the rows of the gate projections of every third block: learned on two thirds of their rows and measured
# on the others.
gates = [layer.mlp.gate_proj.weight.detach() for layer in model.model.layers[::3]]
learned = [gate for number, gate in enumerate(gates) if number % 3]
others = torch.cat(gates[::3])
learner = OnlineOrthogonalDictionary(init="pca", batch_size=2048, random_state=0).fit(torch.cat(learned))
axes = torch.linalg.eigh(sum(gate.T @ gate for gate in learned))[1].T
weights = {}
for name, component in (
    ("unchanged", torch.eye(576)),
    ("principal axes", axes),
    ("dictionary", torch.from_numpy(learner.components_)),
):
    score, weights[name] = measure(others, component)
    print(f"rows of the gates, {name}: score {score:.3f}, 32 of 576 lose {weights[name][-1]:.1%}")

# %%
# Draw what is lost by keeping a few entries.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
colors = {"unchanged": "#8a8178", "principal axes": "#2f6db3", "dictionary": "#c8501e"}
for panel, (title, curves) in zip(
    axes,
    {
        f"attention values of block {BLOCK}, 64 entries": activations,
        "rows of the gates, 576 entries": weights,
    }.items(),
    strict=True,
):
    for name, curve in curves.items():
        panel.plot(TOP, curve, marker="o", ms=4, color=colors[name], label=name)
    panel.set(xscale="log", xlabel="entries kept", title=title, xticks=TOP, xticklabels=TOP, ylim=(0, 1))
    panel.minorticks_off()
    panel.spines[["top", "right"]].set_visible(False)
axes[0].set_ylabel("energy lost, held-out rows")
axes[0].legend(frameon=False)
plt.show()
