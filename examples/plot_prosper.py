"""
Sparse codes with their prior and noise
=======================================

Ten bars, each dark or bright, add up in small noisy images. Binary sparse coding learns the bars, how often one is on
and how strong the noise is, with nothing to tune; the same truncated EM learns on image patches a spike-and-slab
dictionary. The picture shows both, and the temperature and log-likelihood on the way.
"""

# %%
# Bars of either sign: what ten of the images look like, and what is learned.
import numpy as np
from sklearn.datasets import load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d

from weightsmith.claims.prosper import bars_data
from weightsmith.dictionary import BSC, GSC
from weightsmith.dictionary._prosper.schedule import settings_of

points, bars = bars_data(np.random.default_rng(0), signed=True)
model = BSC(10, n_candidates=6, max_active=4, max_iter=60, n_init=3, random_state=0).fit(points)
print(f"pi {model.pi_:.3f} (truth 0.2), sigma {model.sigma_:.2f} (truth 2)")

# %%
# Patches of 8 x 8 from a photograph, without their mean and with all directions scaled alike.
photograph = load_sample_image("china.jpg").mean(2)
patches = extract_patches_2d(photograph, (8, 8), max_patches=5000, random_state=0).reshape(-1, 64)
patches -= patches.mean(1, keepdims=True)
values, directions = np.linalg.eigh(np.cov(patches.T))
keep = values > 1e-3 * values.max()
whitener = directions[:, keep] / np.sqrt(values[keep] + 0.01 * values.max())
slab = GSC(32, n_candidates=6, max_active=3, max_iter=30, random_state=0).fit(patches @ whitener)
active = (slab.transform(patches @ whitener) ** 2 > 1e-3).sum(1).mean()
print(f"{active:.1f} of 32 units active in a patch, log-likelihood {slab.lower_bound_:.1f}")

# %%
# Atoms of the patches are shown as they look in the photograph.
import matplotlib.pyplot as plt

atoms = slab.components_ @ np.linalg.pinv(whitener)
atoms = atoms[np.argsort(-slab.pi_)]


def tiles(images: np.ndarray, side: int, columns: int) -> np.ndarray:
    images = images / np.abs(images).max(1, keepdims=True)
    padded = np.pad(images.reshape(-1, side, side), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    rows = len(images) // columns
    return padded.reshape(rows, columns, side + 2, side + 2).swapaxes(1, 2).reshape(rows * (side + 2), -1)


figure = plt.figure(figsize=(10, 5.4), layout="constrained")
places = figure.subplot_mosaic(
    [["points", "patches"], ["learned", "patches"], ["curve", "patches"]],
    width_ratios=(1.6, 1),
    height_ratios=(1, 1, 3),
)
for name, images, title in (
    ("points", points[:10], "ten of 500 images"),
    ("learned", model.components_, f"learned atoms; pi {model.pi_:.2f}, sigma {model.sigma_:.2f} (truth 0.2 and 2)"),
):
    places[name].imshow(tiles(images, 5, 10), cmap="RdBu", vmin=-1, vmax=1)
    places[name].set_title(title, fontsize=9)
places["patches"].imshow(tiles(atoms, 8, 4), cmap="gray", vmin=-1, vmax=1)
places["patches"].set_title("spike-and-slab atoms of a photograph", fontsize=9)
for name in ("points", "learned", "patches"):
    places[name].set_axis_off()
curve = places["curve"]
curve.plot(model.lower_bound_curve_, color="tab:blue")
curve.set_xlabel("EM step")
curve.set_ylabel("log-likelihood per point", color="tab:blue")
heat = curve.twinx()
heat.plot([now.temperature for now in settings_of(BSC._schedule, 60)], color="tab:red", ls=":")
heat.set_ylabel("temperature", color="tab:red")
for axes in (curve, heat):
    axes.spines["top"].set_visible(False)
plt.show()
