"""
Sparse pre-training, dense fine-tuning
======================================

What a mask saves depends on how much of a model its matrices are: attention scores and the output head are dense. And
what it costs shows after fine-tuning. The left picture counts operations of two GPT sizes, the right one draws the
stored claim on a byte-level model.
"""

# %%
# Count on the meta device, where a model of any size takes no memory.
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from weightsmith import claims
from weightsmith.sparsify import forward_flops

sizes = {"GPT-2 small": {}, "GPT-3 XL": {"n_embd": 2048, "n_layer": 24, "n_head": 16}}
shares = torch.linspace(0, 0.95, 20)
saved = {}
for name, size in sizes.items():
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_positions=2048, **size))
        total = forward_flops(model, {"input_ids": torch.zeros(1, 2048, dtype=torch.long)})["dense"]
    matrices = 2 * 2048 * sum(p.numel() for p in model.transformer.h.parameters() if p.ndim == 2)
    saved[name] = total / (total - shares * matrices)
    print(f"{name}: {total:.3g} operations a sequence, {matrices / total:.0%} in the blocks' matrices")

# %%
# Draw both.
import matplotlib.pyplot as plt

claim = claims.stored("spdf")[0]
mean = {arm["name"]: arm["mean"] for arm in claim["arms"]}
sparsities = (50, 75, 90)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for name, ratio in saved.items():
    left.plot(100 * shares, ratio, label=name)
left.set(xlabel="sparsity of the blocks' matrices, %", ylabel="operations, dense over sparse", ylim=(1, None))
left.legend(frameon=False)
for kind, style in (("dense", "o-"), ("sparse", "o--")):
    values = [mean[f"{s} %, {kind} fine-tuning"] for s in sparsities]
    right.plot((0, *sparsities), [mean["dense"], *values], style, label=f"{kind} fine-tuning")
for name, told in (
    ("no pre-training", "no pre-training"),
    ("dense of equal operations", "smaller dense model, operations as at 75 %"),
):
    right.axhline(mean[name], lw=1, ls=":", color="grey")
    right.text(0, mean[name], told, va="bottom", fontsize=8, color="grey")
right.set(xlabel="sparsity in pre-training, %", ylabel="loss on unseen source, nats per byte")
right.legend(frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
