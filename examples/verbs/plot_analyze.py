"""
Analyze: which weights of a model are the safest to fine-tune?
==============================================================

You want to fine-tune a sentence encoder without losing what it knows. KappaTune's answer is to tune the matrices with
a low condition number. Nothing is changed here: ``weightsmith analyze condition MODEL`` prints the same numbers.
"""

# %%
# The embedded sentence encoder has six blocks of six matrices.
from weightsmith.analyze import condition_report
from weightsmith.embedded import load

model, tokenizer = load("minilm")
report = condition_report(model)
print(len(report.ranked()), "matrices")

# %%
# The best and the worst conditioned ones.
ranked = report.ranked()
for row in [*ranked[:3], *ranked[-3:]]:
    print(f"{row.kappa:12.1f}  {row.name}")

# %%
# One line per kind of matrix, over the depth of the network.
import matplotlib.pyplot as plt

kinds = ("query", "key", "value", "attention.output.dense", "intermediate.dense")
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for kind in kinds:
    line = sorted((row.name, row.kappa) for row in ranked if row.name.endswith(kind))
    axes.semilogy([kappa for _, kappa in line], marker="o", ms=4, label=kind)
axes.set(xlabel="block", ylabel="condition number")
axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** Kinds of matrices differ by more than blocks do. :func:`weightsmith.adapt.kappatune` turns the
# ranking into target modules of a PEFT adapter; its measured claim says where that helps, and where it does not.
