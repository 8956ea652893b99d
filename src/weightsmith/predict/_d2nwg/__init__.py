r"""D2NWG: draw ready-to-use weights for a new data set from a diffusion model trained on a zoo of networks.

A variational autoencoder compresses the zoo's weights :math:`w` to latents :math:`z`, a diffusion model learns the
latents given a few labelled examples :math:`D` of each member's task, and new weights are decoded from its samples:

.. math::
    z_t = \sqrt{\bar\alpha_t}\, s z + \sqrt{1 - \bar\alpha_t}\,\epsilon, \qquad
    \min_\theta \mathbb E\, \lVert \epsilon - \epsilon_\theta(z_t, t, c(D)) \rVert^2, \qquad
    \hat w = \operatorname{decode}(\hat z_0 / s)

Soro, Andreis, Lee, Jeong, Chong, Hutter, Hwang: "Diffusion-Based Neural Network Weights Generation", ICLR 2025,
arXiv:2402.18153.

::

    zoo = WeightZoo.from_folder("zoo")
    generator = WeightDiffusion(zoo, OrderedEncoder(features=32, classes=5)).fit()
    candidates = generator.sample(support_CSF, count=20)
    best = select(model, candidates, lambda model: accuracy(model, batches))
    model.load_state_dict(best[0].state, strict=False)
"""

from weightsmith.predict._d2nwg.autoencoder import ConvolutionalVAE, VAELoss, WeightVAE
from weightsmith.predict._d2nwg.conditions import OrderedEncoder, SetEncoder, alignment_loss, describe
from weightsmith.predict._d2nwg.diffusion import WeightDiffusion, ema_decay
from weightsmith.predict._d2nwg.hypernetwork import Hypernetwork
from weightsmith.predict._d2nwg.method import d2nwg
from weightsmith.predict._d2nwg.selection import Candidate, memorisation, select

__all__ = [
    "Candidate",
    "ConvolutionalVAE",
    "Hypernetwork",
    "OrderedEncoder",
    "SetEncoder",
    "VAELoss",
    "WeightDiffusion",
    "WeightVAE",
    "alignment_loss",
    "d2nwg",
    "describe",
    "ema_decay",
    "memorisation",
    "select",
]
