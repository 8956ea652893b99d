from ._loss_reweighting import (
    LossReweighter as LossReweighter,
    loss_reweighting as loss_reweighting,
    loss_weights as loss_weights,
    per_sequence_loss as per_sequence_loss,
    reweighted as reweighted,
)
from ._meta_rescaling import (
    MetaRescaler as MetaRescaler,
    MetaRescalingLoss as MetaRescalingLoss,
    meta_rescaling as meta_rescaling,
)
from ._pld import (
    PLDLoss as PLDLoss,
    pld as pld,
    pld_loss as pld_loss,
    pld_loss_from_top as pld_loss_from_top,
    suggest_temperature as suggest_temperature,
)
from ._shared.checkpoint import LossCheckpoint as LossCheckpoint
from ._shared.distillation import (
    DistillationLoss as DistillationLoss,
    dist_loss as dist_loss,
    distillation as distillation,
    dkd_loss as dkd_loss,
    kd_loss as kd_loss,
    list_mle_loss as list_mle_loss,
)
from ._weight_compander import (
    Compander as Compander,
    compand as compand,
    compander_parameter_groups as compander_parameter_groups,
    fold_companders as fold_companders,
    weight_compander as weight_compander,
    weight_statistics as weight_statistics,
)
