from ._bang import (
    MixupCollator as MixupCollator,
    bang as bang,
    bang_loss as bang_loss,
    smooth_targets as smooth_targets,
    soft_cross_entropy as soft_cross_entropy,
    warmup_cosine as warmup_cosine,
)
from ._dare import dare as dare, dare_average as dare_average
from ._fisher import diagonal_fisher as diagonal_fisher, fisher as fisher, fisher_average as fisher_average
from ._rebasin import rebasin as rebasin
from ._scale_adapter import scale_adapter as scale_adapter
from ._shared.diagnosis import (
    calibration_error as calibration_error,
    confidence as confidence,
    confidence_ratio as confidence_ratio,
    diagnose as diagnose,
    output_ensemble as output_ensemble,
    transitions as transitions,
)
from ._shared.temperature import balance_logit_scale as balance_logit_scale, fit_temperature as fit_temperature
from ._shared.votes import vote_accuracy as vote_accuracy
from ._slerp import slerp as slerp, slerp_average as slerp_average
from ._soup import average as average, soup as soup
from ._sweep import sweep as sweep
from ._task_arithmetic import add_tasks as add_tasks, task_arithmetic as task_arithmetic
from ._ties import ties as ties, ties_average as ties_average
from ._weight_matching import (
    Matching as Matching,
    MergedNetworks as MergedNetworks,
    StraightThrough as StraightThrough,
    match_activations as match_activations,
    match_straight_through as match_straight_through,
    match_weights as match_weights,
    merge_many as merge_many,
    weight_matching as weight_matching,
)
from ._wise_ft import interpolate as interpolate, wise_ft as wise_ft
from ._zero_shot_head import ZeroShotHead as ZeroShotHead
