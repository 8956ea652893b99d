"""
Fine-tuning with Bone at one learning rate, and at all of them
==============================================================

A small byte-level language model that knows documentation learns Python source with 13 824 trainable numbers. At a
usual small learning rate Bone is ahead of LoRA from the first steps on. The right picture shows why that does not make
it the better method: LoRA wants a larger learning rate, and with it arrives at the lowest loss of the four.
"""

# %%
# The same model, the same text in the same order, the same rate: only the adapter differs.
import copy

import torch
from peft import LoraConfig, get_peft_model

from weightsmith.adapt import BoneConfig
from weightsmith.claims.byte_lm import BATCH, LAYERS, byte_text, pretrained, windows
from weightsmith.core.training import fit

base = pretrained(seed=0, steps=200)
samples = windows(byte_text("source"), 120, seed=0)
configs = {
    "bat": BoneConfig(r=8, variant="bat", target_modules=list(LAYERS)),
    "miss": BoneConfig(r=8, variant="miss", target_modules=list(LAYERS)),
    "pissa": LoraConfig(r=4, lora_alpha=4, init_lora_weights="pissa", target_modules=list(LAYERS)),
    "lora": LoraConfig(r=4, lora_alpha=4, target_modules=list(LAYERS)),
}
curves = {}
for name, config in configs.items():
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(base), config)
    curves[name] = fit(model, samples, learning_rate=1e-3, scheduler="cosine", batch_size=BATCH).losses
    print(f"{name}: {sum(curves[name][-30:]) / 30:.3f} nats per byte")

# %%
# The learning-rate sweep is stored with the claim.
from weightsmith.claims import stored

(tuned,) = (claim for claim in stored("bone") if claim["experiment"] == "tuned")
sweep = {}
for note in tuned["notes"]:
    if note.startswith("Sweep, "):
        name, _, numbers = note.removeprefix("Sweep, ").partition(": ")
        sweep[name] = [tuple(map(float, pair.split())) for pair in numbers.split(", ")]

# %%
# Draw both.
import matplotlib.pyplot as plt

colors = {"bat": "tab:orange", "miss": "tab:red", "pissa": "tab:green", "lora": "tab:blue"}
labels = {"bat": "Bone (bat)", "miss": "MiSS", "pissa": "PiSSA", "lora": "LoRA"}
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
smooth = torch.ones(1, 1, 10) / 10
for name, losses in curves.items():
    line = torch.nn.functional.conv1d(torch.tensor(losses).view(1, 1, -1), smooth).flatten()
    style = {"color": colors[name], "lw": 2, "ls": "--" if name == "miss" else "-", "label": labels[name]}
    left.plot(range(10, 121), line, **style)
    right.plot(*zip(*sweep[name], strict=True), marker="o", ms=4, **style)
left.set(xlabel="step", ylabel="training loss, nats per byte (mean of 10 steps)", title="learning rate 1e-3")
right.set(
    xscale="log", xlabel="learning rate", ylabel="training loss of the last 30 steps", title="120 steps at each rate"
)
left.legend(frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
