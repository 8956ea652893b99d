"""
Weights that are pairs of conductances
======================================

Identical pulses move a conductance by steps that depend on where it is. Left: three devices, up and down. Right: the
stored claim, the accuracy of a small network trained on each device in three ways.
"""

# %%
# Sixty-four pulses up, then sixty-four down.
import torch

from weightsmith.quantize import Exponential, SoftBounds, SynapseDevice

devices = {
    "soft bounds, 3 and 6": SynapseDevice(SoftBounds(64, 3.0), SoftBounds(64, 6.0)),
    "soft bounds, 2 and 2": SynapseDevice(SoftBounds(64, 2.0), SoftBounds(64, 2.0)),
    "exponential, 6 and 6": SynapseDevice(Exponential(64, 6.0), Exponential(64, 6.0)),
}
pulses = torch.arange(65.0)
curves = {
    name: torch.cat([device.potentiate(torch.zeros(65), pulses), device.depress(torch.ones(65), pulses)])
    for name, device in devices.items()
}
for name, curve in curves.items():
    print(f"{name}: the first pulse moves {curve[1]:.3f} up and {1 - curve[66]:.3f} down")

# %%
# Draw both.
import matplotlib.pyplot as plt

from weightsmith import claims

measured = {
    claim["experiment"]: {arm["name"]: arm["mean"] for arm in claim["arms"]} for claim in claims.stored("synapse")
}
titles = {
    "linear": "linear,\n256 pulses",
    "symmetric": "soft bounds 2 and 2,\n64 pulses",
    "asymmetric": "soft bounds 3 and 6,\n64 pulses",
    "exponential": "exponential 6 and 6,\n256 pulses",
}
ways = {"unidirectional": "#c8501e", "bidirectional": "#8fb1d6", "single": "#3b6ea5", "gradient descent": "#bbbbbb"}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1, 1.5))
for name, curve in curves.items():
    left.plot(curve, label=name)
left.set(xlabel="pulses: 64 up, 64 down", ylabel="conductance")
left.legend(frameon=False, fontsize=8)
for number, (way, color) in enumerate(ways.items()):
    values = [100 * measured[experiment][way] for experiment in titles]
    bars = right.bar([place + 0.2 * number for place in range(len(titles))], values, 0.18, label=way, color=color)
    right.bar_label(bars, [f"{value:.0f}" for value in values], fontsize=7)
right.set_xticks([place + 0.3 for place in range(len(titles))], titles.values(), fontsize=8)
right.set(ylabel="test accuracy, %", ylim=(0, 118))
right.legend(frameon=False, ncols=4, fontsize=8, loc="upper center")
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
