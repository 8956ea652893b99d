"""
Sparsify: how many weights can I remove from a language model?
==============================================================

You want half of the weights of a 135M-parameter language model gone. Magnitude pruning needs no data; Wanda looks at
a few hundred tokens first. Is the look worth it?
"""

# %%
# The embedded model, 512 tokens to calibrate on, and others to measure on.
from weightsmith.core.data import token_ids, token_windows
from weightsmith.core.metrics import perplexity
from weightsmith.embedded import load, text
from weightsmith.sparsify import magnitude, wanda

model, tokenizer = load("smollm2")
windows = token_windows(token_ids(tokenizer, text("calibration")), length=128, count=4, batch_size=4)
ids = token_ids(tokenizer, text("evaluation"))[:512]
results = {"dense": perplexity(model, ids)}

# %%
# Prune a fresh copy each time: methods change the model in place.
for name, sparsity in (("magnitude", 0.5), ("wanda", 0.5)):
    model, _ = load("smollm2")
    method = {"magnitude": magnitude, "wanda": lambda m, **o: wanda(m, windows, **o)}[name]
    done = method(model, sparsity=sparsity, exclude="*lm_head")
    results[f"{name}, {sparsity:.0%}"] = perplexity(model, ids)
    print(f"{name}: {done.totals['sparsity']:.1%} zeros, perplexity {results[f'{name}, {sparsity:.0%}']:.1f}")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
bars = axes.barh([*results], [*results.values()], color=["#8a8178", "#2f6db3", "#c8501e"])
axes.bar_label(bars, fmt="%.0f", padding=3)
axes.set(xscale="log", xlabel="perplexity on Python's documentation", xlim=(10, 30 * max(results.values())))
axes.invert_yaxis()
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** Four windows of text are enough for a far better choice of weights at half. On the command line this
# is ``weightsmith sparsify wanda MODEL OUT --sparsity 0.5``; for models larger than memory add ``--stream``.
