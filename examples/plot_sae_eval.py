"""
A dictionary of activations, judged
===================================

How often do two features change a name in SmolLM2's prompts as the counterfactual activations do? How much of the task
is in what a dictionary leaves out? And what do features tell of attributes that are weak, or split? Drawn from the
stored claims; ``weightsmith claims sae-eval`` runs them.
"""

# %%
# The claims: every arm with its seeds.
import matplotlib.pyplot as plt

from weightsmith.claims import stored

claims = {claim["experiment"]: claim for claim in stored("sae-eval")}
colors = {"method": "#c8501e", "baseline": "#2f6db3", "control": "0.65"}

# %%
# Approximation and control are two things: principal components reconstruct well and edit badly.
figure, panels = plt.subplots(
    1, 3, figsize=(13, 3.8), layout="constrained", gridspec_kw={"width_ratios": (1.1, 1.1, 1)}
)
titles = {"control": "edits of two features", "approximation": "approximation"}
for panel, (name, title) in zip(panels, titles.items(), strict=False):
    arms = claims[name]["arms"][::-1]
    places = range(len(arms))
    panel.barh(places, [arm["mean"] for arm in arms], color=[colors[arm["role"]] for arm in arms])
    for place, arm in zip(places, arms, strict=True):
        panel.plot(arm["values"], [place] * len(arm["values"]), "|", color="#111111", alpha=0.6)
    panel.set(yticks=places, yticklabels=[arm["name"] for arm in arms], title=title)
panels[0].set(xlabel="predicted as with the counterfactual activations", xlim=(0, 1))
panels[1].set(xlabel="necessity", xlim=(0, 1))

# %%
# Synthetic activations: among more features a single one tells less; a short attribute is occluded.
arms = {arm["name"]: arm for arm in claims["splitting"]["arms"]}
sizes = [size for size in (2, 8, 32, 128) if f"{size} features" in arms]
means = [arms[f"{size} features"]["mean"] for size in sizes]
panels[2].plot(sizes, means, "o-", color="#c8501e")
for size in sizes:
    values = arms[f"{size} features"]["values"]
    panels[2].plot([size] * len(values), values, "_", color="#c8501e", alpha=0.6)
union = arms["128 features, their best union"]["mean"]
panels[2].plot([128], [union], "s", color="#c8501e", fillstyle="none")
panels[2].text(2.4, 0.2, "best feature for a\nbinary attribute", color="#c8501e", fontsize=8)
panels[2].text(100, union - 0.02, "best union", color="#c8501e", fontsize=8, ha="right")
for arm in claims["occlusion"]["arms"]:
    panels[2].plot([1400], [arm["mean"]], "x", color="#2f6db3")
short = {arm["name"].removeprefix("the same attribute "): arm["mean"] for arm in claims["occlusion"]["arms"]}
for (name, mean), shift in zip(short.items(), (-0.07, 0.03, -0.02), strict=True):
    panels[2].text(1800, mean + shift, name.replace(" attribute", ""), color="#2f6db3", fontsize=8)
panels[2].set(xscale="log", xlim=(1.5, 30000), xticks=[*sizes, 1400], xticklabels=[*sizes, "L1: 256"])
panels[2].set(xlabel="features of the dictionary", ylabel="F1", ylim=(0, 1.05), title="splitting, occlusion")
for panel in panels:
    panel.spines[["top", "right"]].set_visible(False)
    panel.minorticks_off()
plt.show()
