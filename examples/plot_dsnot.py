"""
Improving a pruning mask with DSnoT
===================================

Magnitude pruning removes half the weights of every row of SmolLM2-135M without looking at any data, and shifts the
mean output of its layers. DSnoT swaps a few weights per row until the shift is gone. The picture shows the shift of
every layer before and after, and how many swaps it took.
"""

# %%
# Prune and refine: one thousand tokens are enough for a picture.
from weightsmith.core.data import token_ids, token_windows
from weightsmith.embedded import load, text
from weightsmith.sparsify import dsnot

model, tokenizer = load("smollm2")
windows = token_windows(token_ids(tokenizer, text("calibration")), length=256, count=4, batch_size=4)
result = dsnot(model, windows, sparsity=0.5, start="magnitude")
print(f"{result.totals['sparsity']:.0%} zeros, {result.totals['swaps']:.1f} swaps per row")

# %%
# Draw the layers in the order of the network.
import matplotlib.pyplot as plt

kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for kind in kinds:
    rows = [row for row in result.layers if row["layer"].endswith(kind)]
    (line,) = left.plot([row["row_error_before"] for row in rows], lw=1, ls=":")
    left.plot([row["row_error_after"] for row in rows], lw=1.5, color=line.get_color(), label=kind)
    right.plot([row["swaps"] for row in rows], lw=1.5, color=line.get_color())
left.set(yscale="log", xlabel="block", ylabel="mean |expected output error| per token")
left.set_title("dotted: magnitude mask, solid: refined")
left.legend(frameon=False, fontsize=8, ncols=2)
right.set(xlabel="block", ylabel="swaps per row", title="one swap: one weight back, one weight out")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
