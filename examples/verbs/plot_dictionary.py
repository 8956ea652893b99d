"""
Dictionary: which parts are my data made of?
============================================

You have many measurements and suspect that few causes explain them. A dictionary finds the causes; a supervised one
finds those that also predict a label. Both are scikit-learn estimators.
"""

# %%
# Wisconsin's breast cancer data: thirty features of 569 tumors.
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from weightsmith.dictionary import SupervisedDictionaryClassifier

data = load_breast_cancer()
X, y = data.data, data.target

# %%
# Two atoms that predict, against two principal components and a classifier on them, by cross-validation.
models = {
    "supervised dictionary": SupervisedDictionaryClassifier(n_components=2, tol=1e-4, max_iter=5000, random_state=0),
    "PCA, then logistic regression": make_pipeline(PCA(2), LogisticRegression()),
}
scores = {name: cross_val_score(make_pipeline(MinMaxScaler(), model), X, y, cv=5) for name, model in models.items()}
for name, values in scores.items():
    print(f"{name}: {values.mean():.3f} ± {values.std():.3f}")

# %%
# What the two atoms hold, and where the tumors lie between them.
scaled = MinMaxScaler().fit_transform(X)
dictionary = models["supervised dictionary"].fit(scaled, y)
codes = dictionary.transform(scaled)
for number, atom in enumerate(dictionary.components_):
    strongest = np.argsort(-abs(atom))[:4]
    print(f"atom {number}:", ", ".join(data.feature_names[place] for place in strongest))

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for kind, color in enumerate(("#c8501e", "#2f6db3")):
    axes.scatter(*codes[y == kind].T, s=8, color=color, label=data.target_names[kind])
axes.set(xlabel="atom 0", ylabel="atom 1")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** Two numbers per tumor separate the classes, and each has a meaning that a reader can check. Streams
# go through ``partial_fit`` of :class:`weightsmith.dictionary.OnlineOrthogonalDictionary`; ``xi`` trades
# reconstruction for prediction.
