"""
Where the energy of a recipe is
===============================

The kit of a soup, priced from the nutrition table: the energy of each ingredient, and the interval that comes from
ranges in the recipe and from how much cups and pieces vary. A correction in words changes it.
"""

# %%
# Read the recipe and price it.
from weightsmith_kitchen import NutritionTable, edit, make_kit, read_recipe

RECIPE = """Lentil soup
Serves 4
2 tbsp olive oil
1 large onion, chopped
2-3 cloves garlic
1 1/2 cups red lentils
2 carrots
1 potato
1 litre vegetable stock
a handful of parsley"""

table = NutritionTable.default()
kit = make_kit(read_recipe(RECIPE), table)
reply = edit(kit, "butter instead of olive oil, no potato", table)
print(reply.said)
for item in reply.kit.unpriced:
    print(item.name, item.notes)

# %%
# Draw the parts of both kits, with their intervals.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained", sharex=True)
for axis, (title, shown) in zip(axes, (("as written", kit), (f"after: {reply.said}", reply.kit)), strict=True):
    items = sorted((item for item in shown.ingredients if item.kcal is not None), key=lambda item: item.kcal.value)
    names = [f"{item.measured()} {item.name}" for item in items]
    values = [item.kcal.value for item in items]
    errors = [
        [item.kcal.value - item.kcal.low for item in items],
        [item.kcal.high - item.kcal.value for item in items],
    ]
    axis.barh(names, values, xerr=errors, color="#c8501e", error_kw={"ecolor": "#3a3430", "lw": 1.2})
    bound = "" if shown.complete else "at least "
    axis.set_title(f"{title}\n{bound}{shown.kcal} kcal", fontsize=10)
    axis.set_xlabel("kcal")
    axis.spines[["top", "right"]].set_visible(False)
plt.show()
