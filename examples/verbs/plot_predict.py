"""
Predict: can I get better weights without more data?
====================================================

You have fifty labeled images. KNOW watches how a network forgets when its data shrink, and runs that backwards, as if
there had been more data. Does the prediction help, and would simply shrinking the weights do the same?
"""

# %%
# A network trained on digits whose data were halved twice: its weights after each halving are the trajectory.
import warnings

import torch

from weightsmith.claims.know import DigitsTask
from weightsmith.predict import KnowPredictor, matched_shrink

warnings.simplefilter("ignore", UserWarning)  # that layers shrink is what we look at
torch.set_num_threads(1)
task = DigitsTask.make(100)
trained = task.trajectory[-1]
print(len(task.trajectory), "states of", sum(value.numel() for value in trained.values()), "weights")

# %%
# Predict the weights of two, and of eight times the data, with the predictor that ships.
predictor = KnowPredictor.from_pretrained("ours")
accuracy, shrunk = {}, {}
for steps in (0, 1, 3):
    predicted = predictor.retrodict(task.trajectory, steps=steps)
    accuracy[steps] = task.transfer(predicted)
    shrunk[steps] = task.transfer(matched_shrink(trained, predicted))
    print(f"{2**steps} times the data: {accuracy[steps]:.3f}, a shrink as strong {shrunk[steps]:.3f}")

# %%
# Both, side by side.
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.plot([*accuracy], [*accuracy.values()], "o-", label="KNOW")
axes.plot([*shrunk], [*shrunk.values()], "s:", label="weights shrunk as much")
axes.set_xticks([0, 1, 3], ["trained", "x 2", "x 8"])
axes.set(xlabel="data predicted for", ylabel="accuracy on new digits with 50 images")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# **Take away.** Always look at the control beside the method: what a predictor of weights gains may be what a shrink
# of the weights gains. The claim of :func:`weightsmith.predict.know` has this on ten networks.
