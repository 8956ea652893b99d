"""
How sure the tagger is of each word
===================================

The tagger of ingredient lines gives each token the label that the whole line makes most probable, and says how
probable it is. Four lines show what is easy and what is not: an amount is certain, a word that is a state for one food
and part of the name of another is not. The second panel shows how probable the labels are by kind, over 150 lines.
"""

# %%
# Tag four lines. The first has a package, the second a range, the last two use *ground* and *cloves* in both senses.
from weightsmith_kitchen import IngredientTagger

tagger = IngredientTagger.default()
lines = [
    "1 ½ (14 ounce) jars basil pesto",
    "2-3 medium firm tomatoes, roughly chopped",
    "1 tsp ground cloves",
    "3 cloves garlic, crushed",
]
tagged = tagger.tag_many(lines)
for line in tagged:
    print([(line.text[token.start : token.end], tag) for token, tag in zip(line.tokens, line.tags, strict=True)])

# %%
# Lines of many kinds, put together from parts.
from itertools import product

amounts = ["2", "1 1/2", "1-2", "a few", "about 3"]
units = ["cups", "tbsp", "g", "large", "(14 oz) cans"]
foods = [
    "plain flour",
    "olive oil",
    "red onion, finely chopped",
    "frozen peas",
    "chicken thighs, skin on",
    "star anise",
]
many = tagger.tag_many([" ".join(parts) for parts in product(amounts, units, foods)])
sure: dict[str, list[float]] = {}
for line in many:
    for tag, confidence in zip(line.tags, line.confidences, strict=True):
        sure.setdefault(tag, []).append(confidence)

# %%
# Draw both.
import matplotlib.pyplot as plt
import numpy as np

colors = {
    "QUANTITY": "#2f6db3", "UNIT": "#3b8f6b", "NAME": "#c8501e", "STATE": "#8a6fb8",
    "SIZE": "#b8860b", "TEMP": "#5f9ea0", "DF": "#a05f78", "O": "#b9b2a8",
}  # fmt: skip
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.6), layout="constrained", width_ratios=[1.7, 1])
for row, line in enumerate(tagged):
    at = 0.0
    for token, tag, confidence in zip(line.tokens, line.tags, line.confidences, strict=True):
        text = line.text[token.start : token.end]
        width = max(len(text), 2) + 1.4
        left.barh(row, width - 0.3, left=at, height=0.62, color=colors[tag], alpha=0.25 + 0.75 * confidence**3)
        left.text(at + (width - 0.3) / 2, row, text, ha="center", va="center", size=8.5)
        left.text(at + (width - 0.3) / 2, row + 0.46, f"{confidence:.2f}", ha="center", va="center", size=6.5)
        at += width
left.set(yticks=[], xticks=[], title="label by color, probability below", ylim=(3.8, -0.6))
left.legend(
    [plt.Rectangle((0, 0), 1, 1, color=color) for color in colors.values()], colors, ncols=8, frameon=False, fontsize=7,
    loc="upper center", bbox_to_anchor=(0.5, 0.02), handlelength=1, columnspacing=0.8,
)  # fmt: skip
names = sorted(sure, key=lambda tag: -np.mean(sure[tag]))
right.barh(names, [np.mean(sure[name]) for name in names], color=[colors[name] for name in names])
right.invert_yaxis()
right.set(xlim=(0.5, 1), xlabel="mean probability of the label given", title="150 lines put together from parts")
for axes in (left, right):
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
plt.show()
