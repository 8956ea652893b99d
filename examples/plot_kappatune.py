"""
What a condition number says, and what it does not
===================================================

Every matrix of SmolLM2-135M by its condition number, from the files of the checkpoint, without building the model. Most
of what the number says is the shape of the matrix: a random one of the same shape has a condition number of its own.
"""

# %%
# Read all 210 matrices.
from weightsmith.analyze import condition_report

report = condition_report("embedded:smollm2", score="kappa")
chosen = set(report.select(top_p=0.2))
print({kind: sum(name.endswith(kind) for name in chosen) for kind in ("v_proj", "down_proj", "up_proj", "q_proj")})

# %%
# Draw the condition numbers, with those of random matrices of the same shapes as dashes, then the ratio of the two, and
# what adapters on the chosen matrices forgot while they learned as much as the other arms.
import matplotlib.pyplot as plt

from weightsmith.claims import stored

kinds = ("v_proj", "k_proj", "up_proj", "down_proj", "gate_proj", "o_proj", "q_proj")
colors = dict(zip(kinds, plt.get_cmap("tab10").colors, strict=False))
figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 4.2), layout="constrained", gridspec_kw={"width_ratios": (1, 1, 1.1)}
)
for kind in kinds:
    rows = [row for row in report.rows if row.name.endswith(kind)]
    rows.sort(key=lambda row: int(row.name.split(".")[2]))  # files have them in the order of their names
    left.plot([row.kappa for row in rows], lw=1.5, color=colors[kind], label=kind)
    middle.plot([row.kappa_over_mp for row in rows], lw=1.5, color=colors[kind])
    left.axhline(rows[0].reference, color="0.6", lw=0.8, ls="--", zorder=0)
left.set(yscale="log", xlabel="block", ylabel="condition number", title="dashes: random matrices of the shapes")
left.legend(frameon=False, fontsize=8, ncols=2, loc="center", bbox_to_anchor=(0.55, 0.39))
middle.set(yscale="log", xlabel="block", ylabel="condition number over that of a random matrix")
middle.set_title("the same, with the shape taken out")

forgetting = next(claim for claim in stored("kappatune") if claim["experiment"] == "forgetting")
arms = sorted(forgetting["arms"], key=lambda arm: arm["mean"])
for place, arm in enumerate(arms):
    right.plot(arm["values"], [place] * len(arm["values"]), "o", color="0.6", ms=4)
    right.plot(arm["mean"], place, "D", color="#c8501e" if arm["role"] == "method" else "#2f6db3", ms=7)
right.set_yticks(range(len(arms)), [arm["name"].replace(" over that", "\nover that") for arm in arms])
right.set(xlabel="rise of control loss, nats per token", title="forgotten at equal loss on the new text")
for axes in (left, middle, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()
