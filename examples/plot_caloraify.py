"""
Calories of a generated list, and what noise does to them
=========================================================

A model wrote a list of ingredients. Each item is looked up in a table of kcal per unit. Then the same list is
misspelled, and three look-ups are compared.
"""

# %%
# Read the list and look its items up.
import numpy as np

from weightsmith_kitchen.calories import CalorieEstimator, CalorieTable, parse_list

TABLE = {
    "pound butter": 3252,
    "tablespoon butter": 102,
    "pound cheese": 1823,
    "cup cheese": 455,
    "cup wheat flour": 455,
    "tablespoon wheat flour": 28,
    "quart milk": 595,
    "cup milk": 149,
    "cup potatoes": 116,
    "ounce onions": 11,
    "cup onions": 64,
}
LIST = (
    "The dish is Potato Bake. They are: 3-4 cups of potatoes, 3 tablespoons of butter, 1/4 cup of wheat flour, "
    "1 1/2 cups of milk, 1 cup of cheese, 1/2 cup of onion, 1 sprig of thyme"
)
table = CalorieTable.from_rows(TABLE.items())
estimator = CalorieEstimator(table)
report = estimator(LIST, servings=4)
print(report)

# %%
# Misspell one letter in twenty of each ingredient, two hundred times.
rng = np.random.default_rng(0)
items = [match.item for match in report.items if match.known]
truth = sum(match.kcal for match in report.items)
first = {name: kcal for (_, name), kcal in reversed(table.rows.items())}


def misspelled(name):
    return "".join(rng.choice(list("aeioustr")) if rng.random() < 0.05 else letter for letter in name)


errors = {"unit-aware": [], "ingredient alone": [], "exact key only": []}
for _ in range(200):
    noisy = parse_list(", ".join(f"{item.amount} {item.unit} of {misspelled(item.ingredient)}" for item in items))
    amounts = np.array([float(item.amount) for item in noisy])
    nearest = estimator.index.similarities([item.ingredient for item in noisy]).argmax(1)
    found = {
        "unit-aware": [match.per_unit for match in estimator.index.look_up(noisy)],
        "ingredient alone": [first[estimator.index.ingredients[place]] for place in nearest],
        "exact key only": [table.rows.get((item.unit, item.ingredient), 0) for item in noisy],
    }
    for name, per_unit in found.items():
        errors[name].append(100 * abs(amounts @ np.array(per_unit) - truth) / truth)

# %%
# Draw the items with their intervals, and the errors.
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", width_ratios=(1.4, 1))
shown = sorted((match for match in report.items if match.known), key=lambda match: match.kcal)
reach = [[match.kcal - match.interval[0] for match in shown], [match.interval[1] - match.kcal for match in shown]]
left.barh(
    [f"{match.item.text}  [{match.row}]" for match in shown],
    [match.kcal for match in shown],
    xerr=reach,
    color="#c8501e",
    error_kw={"ecolor": "#3a3430", "lw": 1.2},
)
left.set_title(f"at least {report.kcal:.0f} kcal; unknown: {report.unmatched[0].item.text}", fontsize=10)
left.set_xlabel("kcal")
for (name, values), color in zip(errors.items(), ("#c8501e", "#2f6db3", "#8a8178"), strict=True):
    right.plot(np.maximum(np.sort(values), 0.01), np.linspace(0, 1, len(values)), label=name, color=color)
right.set_xscale("log")
right.set_xlabel("error of the total in %, at least 0.01 %")
right.set_ylabel("share of misspelled lists")
right.set_title("one letter in twenty changed", fontsize=10)
right.legend(frameon=False, fontsize=9)
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
plt.show()
