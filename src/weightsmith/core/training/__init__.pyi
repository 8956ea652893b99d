from ._adapters import refuse_adapters as refuse_adapters
from ._batch_loss import (
    Loss as Loss,
    default_loss as default_loss,
    has_label as has_label,
    labeled as labeled,
    logits_of as logits_of,
    mean_loss as mean_loss,
    predict as predict,
    sample_losses as sample_losses,
    shift_for_causal_lm as shift_for_causal_lm,
)
from ._fit import (
    Fit as Fit,
    batch_count as batch_count,
    draw_seed as draw_seed,
    fit as fit,
    seed_of as seed_of,
)
from ._float_steps import float_steps as float_steps
from ._labels import (
    IGNORED as IGNORED,
    check_labels as check_labels,
    check_probabilities as check_probabilities,
)
from ._losses import (
    LOWEST as LOWEST,
    check_temperature as check_temperature,
    counted_logits as counted_logits,
    counted_rows as counted_rows,
    kd_loss as kd_loss,
    soft_cross_entropy as soft_cross_entropy,
    soft_target_loss as soft_target_loss,
)
from ._many import Task as Task, train_many as train_many
from ._optimizer import (
    adamw as adamw,
    trained_parameters as trained_parameters,
)
from ._options import (
    FIT_DEFAULTS as FIT_DEFAULTS,
    FitOptions as FitOptions,
    check_finite as check_finite,
    check_options as check_options,
    training_method as training_method,
)
from ._restore import (
    float_weights as float_weights,
    gradients_restored as gradients_restored,
    modes_restored as modes_restored,
    requires_grad_restored as requires_grad_restored,
    restored_on_error as restored_on_error,
)
from ._trainer import (
    labels_and_logits as labels_and_logits,
    share_of_step as share_of_step,
    trainer_cross_entropy as trainer_cross_entropy,
)
