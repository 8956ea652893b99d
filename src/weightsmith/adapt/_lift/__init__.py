r"""LIFT: an optimizer for the few weights that are largest after a low-rank approximation.

"LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for Reasoning-Focused Supervised
Fine-Tuning" (ICML 2025), arXiv 2506.00772. Of every weight matrix only the *principal* weights are trained, the
:math:`k` entries of largest magnitude in its best rank-:math:`R` approximation

.. math:: M = \operatorname{top}_k \bigl| U_R \Sigma_R V_R^\top \bigr|, \qquad W = U \Sigma V^\top

Adam runs on the vector :math:`W_M`, so that its moments exist for :math:`k` weights only, and :math:`M` is chosen anew
every ``update_interval`` steps: weights that stay keep their moments, new ones start from zero.
"""

from weightsmith.adapt._lift.groups import lift_groups
from weightsmith.adapt._lift.mask import principal_mask
from weightsmith.adapt._lift.method import lift
from weightsmith.adapt._lift.optimizer import LIFTAdamW
from weightsmith.adapt._lift.shira import export_shira
from weightsmith.core.io import SparseDelta, apply_delta, load_delta, save_delta

__all__ = [
    "LIFTAdamW",
    "SparseDelta",
    "apply_delta",
    "export_shira",
    "lift",
    "lift_groups",
    "load_delta",
    "principal_mask",
    "save_delta",
]
