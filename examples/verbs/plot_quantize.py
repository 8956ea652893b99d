"""
Quantize: how many bits does a weight need?
===========================================

You want a sentence encoder in a quarter of its memory. Rounding each weight to the nearest level is free; GPTQ looks
at some text and lets later weights make up for the rounding of earlier ones. How far down do both go?
"""

# %%
# The embedded encoder, its own embeddings of forty sentences as the reference, and others to calibrate on.
import torch
from torch.nn import functional

from weightsmith.embedded import load, text
from weightsmith.quantize import gptq, round_to_nearest

model, tokenizer = load("minilm")
sentences = [line.strip() for line in text("evaluation").split(". ") if 40 < len(line) < 200][:40]
calibration = [line.strip() for line in text("calibration").split(". ") if 40 < len(line) < 200][:64]


def batch(lines):
    return dict(tokenizer(lines, padding=True, truncation=True, max_length=48, return_tensors="pt"))


@torch.no_grad()
def embedded(model):
    inputs = batch(sentences)
    mask = inputs["attention_mask"].unsqueeze(-1)
    return functional.normalize((model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1), dim=1)


reference = embedded(model)

# %%
# Quantize a fresh copy to 4 and 3 bits, and compare the embeddings.
bits, similarity = (4, 3), {"round to nearest": [], "GPTQ": []}
for width in bits:
    for name in similarity:
        model, _ = load("minilm")
        if name == "GPTQ":
            gptq(model, [batch(calibration)], weight_bits=width)
        else:
            round_to_nearest(model, weight_bits=width)
        similarity[name].append((embedded(model) * reference).sum(1).mean().item())
    print(f"{width} bits:", {name: round(values[-1], 3) for name, values in similarity.items()})

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, values in similarity.items():
    axes.plot(range(len(bits)), values, "o-", label=name)
axes.set_xticks(range(len(bits)), [f"{width} bits" for width in bits])
axes.set(ylabel="cosine with the embeddings of the float model")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** At four bits calibration helps; at three neither is enough, and the model has to be trained, with
# :func:`weightsmith.quantize.ofq`. ``--packed`` stores the codes in few bits.
