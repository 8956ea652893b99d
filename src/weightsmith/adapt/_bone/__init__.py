r"""Bone: fine-tune by small square blocks that transform a frozen weight block by block.

.. math:: W'_{oi} = W_{oi} + W_{oi} B_o + B_o, \qquad B_o \in \mathbb{R}^{r \times r}

The same block acts on a whole row of blocks of the weight, so that a layer of ``out`` by ``in`` has ``out * r``
trainable numbers, as LoRA has at a rank of about ``r / 2``. All are zero at the start, and all have a gradient there,
while half of LoRA's have none. Merged into the weight it costs nothing at inference.

Kang: "Bone: Block-Affine Adaptation of Large Language Models", arXiv 2409.15371. **The name changed its meaning**:
versions 1 to 3 call ``W B + B`` Bone (``variant="bat"``, PEFT's ``init_weights="bat"``); later versions call the
purely additive update Bone, then MiSS (``variant="miss"``, PEFT's ``init_weights=True``).

::

    model = peft.get_peft_model(model, BoneConfig(r=64))
    train(model)
    model.save_pretrained("adapter")
    model = model.merge_and_unload()

or, in one call, :func:`bone`.
"""

from weightsmith.adapt._bone.config import BoneConfig
from weightsmith.adapt._bone.method import bone
from weightsmith.adapt._bone.tuner import BoneLinear, BoneModel

__all__ = ["BoneConfig", "BoneLinear", "BoneModel", "bone"]
