"""
Weights drawn for a task
========================

A diffusion model learns what linear heads on digits look like, given a few labelled images of their five classes. For
combinations of classes it has not seen it draws heads that work at once. Given examples of another task it draws
heads for that task, so it does use the examples; a plain regression of the weights uses them as well.
"""

# %%
# The measured arms of the claim.
import matplotlib.pyplot as plt

from weightsmith.claims import stored

arms = {claim["experiment"]: {arm["name"]: arm for arm in claim["arms"]} for claim in stored("d2nwg")}

# %%
# A small zoo to draw from: 400 heads for tasks of two classes on two features. What is drawn for one task lies around
# the members that were trained for it, somewhat wider than they do.
from functools import partial

import torch
from torch import nn

from weightsmith.core.training import Task, train_many
from weightsmith.predict import OrderedEncoder, WeightDiffusion, WeightVAE, WeightZoo

torch.manual_seed(0)
angles = 6.283 * torch.rand(400)
centers = torch.stack([angles.cos(), angles.sin()], dim=1)
points = torch.stack([centers, -centers], dim=1)[:, :, None] + 0.7 * torch.randn(400, 2, 20, 2)
labels = torch.arange(2).repeat_interleave(20).expand(400, -1)
descent = partial(torch.optim.SGD, lr=0.5)
tasks_of_zoo = Task(points.flatten(1, 2), labels)
heads = train_many(lambda: nn.Linear(2, 2, bias=False), tasks_of_zoo, optimizer=descent, steps=30)
zoo = WeightZoo.from_state_dicts(heads, support_NCSF=points)
generator = WeightDiffusion(zoo, OrderedEncoder(2, 2), vae=WeightVAE(4, latent=4, width=64))
generator.fit(vae_steps=600, steps=1500, batch_size=64, average=0.99)
tasks = {
    angle: torch.tensor([[angle.cos(), angle.sin()], [-angle.cos(), -angle.sin()]])
    for angle in torch.tensor([0.5, 2.6, 4.7])
}
drawn = {
    float(angle): generator.sample_rows(means[None, :, None] + 0.3 * torch.randn(1, 2, 5, 2), 60)
    for angle, means in tasks.items()
}

# %%
# Draw both.
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained", width_ratios=(1, 1.5))
rows = torch.from_numpy(zoo.weights_NP.copy())
left.scatter(rows[:, 0], rows[:, 1], s=5, color="#cfc9c1", label="the zoo")
for (angle, heads_drawn), color in zip(drawn.items(), ("#c8501e", "#2f6db3", "#3d8f5f"), strict=True):
    left.scatter(heads_drawn[:, 0], heads_drawn[:, 1], s=8, color=color, label=f"drawn, task at {angle:.1f} rad")
left.set(
    title="weights of the first class, two features", xlabel="first weight", ylabel="second weight", aspect="equal"
)
left.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)
order = [
    "5-shot logistic",
    "class means",
    "nearest member, fine-tuned",
    "nearest member",
    "drawn, another task's examples",
    "hypernetwork",
    "drawn, mean of ten",
    "drawn, fine-tuned",
    "drawn",
]
for offset, (name, title, color) in zip(
    (0.2, -0.2),
    (
        ("combinations", "new combinations of known classes", "#c8501e"),
        ("left-out", "two of five classes unknown", "#2f6db3"),
    ),
    strict=True,
):
    values = [arms[name][arm]["mean"] for arm in order]
    errors = [[v - arms[name][arm]["ci95"][0] for arm, v in zip(order, values, strict=True)]] * 2
    places = [number + offset for number in range(len(order))]
    right.barh(places, values, height=0.38, xerr=errors, color=color, label=title, error_kw={"lw": 1})
right.axvline(arms["combinations"]["40-shot head"]["mean"], color="black", ls=":", lw=1)
right.text(
    arms["combinations"]["40-shot head"]["mean"] - 0.01,
    len(order) - 0.5,
    "trained on 40 examples per class, all known",
    ha="right",
    fontsize=8,
)
right.set(yticks=range(len(order)), yticklabels=order, xlabel="test accuracy", xlim=(0, 1.02))
right.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8)
right.spines[["top", "right"]].set_visible(False)
plt.show()
