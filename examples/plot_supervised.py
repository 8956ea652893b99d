"""
Two atoms learned with the labels
=================================

Handwritten threes and eights, two atoms: what separates the digits is not what varies most. Atoms learned together with
the labels separate them and still reconstruct nearly as well; one weight moves between the two aims.
"""

# %%
# Half of the digits to learn from. The peers are as many atoms without labels, with a logistic regression on top.
import warnings

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from weightsmith.dictionary import SupervisedDictionaryClassifier

X, y = load_digits(return_X_y=True)
kept = np.isin(y, (3, 8))
X, X_new, y, y_new = train_test_split(X[kept] / 16, y[kept], test_size=0.5, stratify=y[kept], random_state=0)


def loss(model, features):
    """The share of the square that the atoms do not reconstruct."""
    return float(((features - model.reconstruct(features)) ** 2).sum() / (features**2).sum())


weights = np.logspace(-3, 1, 9)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)
    models = [SupervisedDictionaryClassifier(n_components=2, xi=xi, alpha=1e-2).fit(X, y) for xi in weights]
accuracies = [model.score(X_new, y_new) for model in models]
losses = [loss(model, X_new) for model in models]

svd = TruncatedSVD(2, algorithm="arpack", random_state=0).fit(X)
plain = LogisticRegression(C=1e3, max_iter=1000).fit(svd.transform(X), y)
plain_accuracy = plain.score(svd.transform(X_new), y_new)
plain_loss = float(((X_new - svd.inverse_transform(svd.transform(X_new))) ** 2).sum() / (X_new**2).sum())
ours = models[4]
print(f"supervised, xi=0.1: accuracy {accuracies[4]:.3f}, lost {losses[4]:.3f} of the square")
print(f"SVD and logistic regression: accuracy {plain_accuracy:.3f}, lost {plain_loss:.3f}")

# %%
# The atoms, the codes of new digits, and the trade between the two aims.
import matplotlib.pyplot as plt

figure = plt.figure(figsize=(11, 4), layout="constrained")
places = figure.subplot_mosaic(
    [["s0", "svd", "d0", "sdl", "trade"], ["s1", "svd", "d1", "sdl", "trade"]], width_ratios=(1, 2.6, 1, 2.6, 3.6)
)
for name, atoms in {"s": svd.components_, "d": ours.components_}.items():
    for number, atom in enumerate(atoms):
        panel = places[f"{name}{number}"]
        panel.imshow(atom.reshape(8, 8), cmap="RdBu", vmin=-abs(atom).max(), vmax=abs(atom).max())
        panel.set_axis_off()
for name, codes, accuracy in (
    ("svd", svd.transform(X_new), plain_accuracy),
    ("sdl", ours.transform(X_new), accuracies[4]),
):
    for digit, color in ((3, "#2f6db3"), (8, "#c8501e")):
        places[name].scatter(*codes[y_new == digit].T, s=6, color=color, label=f"{digit}")
    title = {"svd": "SVD", "sdl": "supervised, xi = 0.1"}[name]
    places[name].set_title(f"{title}: {accuracy:.1%}", fontsize=10)
    places[name].set(xticks=[], yticks=[], xlabel="first atom", ylabel="second atom")
places["svd"].legend(frameon=False, title="digit")
trade = places["trade"]
trade.plot(losses, accuracies, marker="o", color="#c8501e", label="supervised, xi from 0.001 to 10")
for index, shift in ((0, (-62, -14)), (4, (6, -12)), (8, (10, -3))):
    trade.annotate(f"xi = {weights[index]:g}", (losses[index], accuracies[index]), shift, textcoords="offset points")
trade.plot(plain_loss, plain_accuracy, marker="s", ls="", color="#2f6db3", label="SVD + logistic regression")
trade.set(xlabel="square lost in reconstruction", ylabel="accuracy", title="new digits")
trade.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.08))
trade.spines[["top", "right"]].set_visible(False)
plt.show()
