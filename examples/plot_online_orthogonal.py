"""
A basis that follows its stream
===============================

Sparse vectors arrive in batches of twenty. They are made with an unknown orthonormal basis that is replaced by another
one halfway. Steps with a minimum length find the new basis; steps that decay to zero do not. On image
patches the learned basis keeps more in a few coefficients than the principal axes and the cosine basis.
"""

# %%
# The stream: three codes in ten are not zero. The error is one minus the mean cosine of the true atoms and their best
# matches; it is measured after every batch.
import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.feature_extraction.image import extract_patches_2d

from weightsmith.dictionary import OnlineOrthogonalDictionary

FEATURES, BATCHES, CHANGE = 20, 1200, 600
rng = np.random.default_rng(0)
bases = [np.linalg.qr(rng.standard_normal((FEATURES, FEATURES)))[0] for _ in range(2)]
codes = rng.standard_normal((BATCHES, FEATURES, FEATURES)) * (rng.random((BATCHES, FEATURES, FEATURES)) < 0.3)

learners = {
    "steps ≥ 0.05": OnlineOrthogonalDictionary(step_floor=0.05, random_state=0),
    "decaying, $t^{-1/2}$": OnlineOrthogonalDictionary(random_state=0),
    "decaying, $t^{-3/4}$ (the paper's rate)": OnlineOrthogonalDictionary(step_power=0.75, random_state=0),
}
errors = {name: [] for name in learners}
for number, batch in enumerate(codes):
    basis = bases[number >= CHANGE]
    for name, learner in learners.items():
        learner.partial_fit(batch @ basis.T)
        errors[name].append(1 - abs(learner.components_ @ basis).max(axis=0).mean())
for name, curve in errors.items():
    print(f"{name}: error {curve[CHANGE - 1]:.4f} before the change, {curve[-1]:.4f} at the end")

# %%
# Patches of two photographs, learned in four passes from the principal axes of the first ones.
grey = [image.mean(axis=2) / 255 for image in load_sample_images().images]
patches = np.concatenate([extract_patches_2d(image, (8, 8), max_patches=8000, random_state=0) for image in grey])
patches = patches.reshape(-1, 64) - patches.reshape(-1, 64).mean(axis=1, keepdims=True)
learner = OnlineOrthogonalDictionary(init="pca", max_epochs=4, random_state=0).fit(patches)
atoms = learner.components_[np.argsort(-learner.energies_)]

# %%
# Draw the errors and the atoms, the strongest first.
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1.5, 1))
for (name, curve), color in zip(errors.items(), ("#c8501e", "#2f6db3", "#8a8178"), strict=True):
    left.semilogy(np.arange(1, BATCHES + 1), curve, color=color, label=name)
left.axvline(CHANGE, color="black", ls=":", lw=1)
left.set(
    xlabel="batches of 20 vectors", ylabel="error of the atoms", title="the basis changes at batch 600", ylim=(5e-5, 1)
)
left.legend(frameon=False, loc="lower left")
left.spines[["top", "right"]].set_visible(False)
tiles = np.pad(atoms.reshape(8, 8, 8, 8), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
right.imshow(tiles.transpose(0, 2, 1, 3).reshape(72, 72), cmap="gray", vmin=-0.4, vmax=0.4)
right.set_title("64 atoms of 8 × 8 image patches")
right.set_axis_off()
plt.show()
