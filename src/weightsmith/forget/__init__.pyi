from ._active_forgetting import (
    EmbeddingForgetting as EmbeddingForgetting,
    EmbeddingForgettingCallback as EmbeddingForgettingCallback,
    random_rows as random_rows,
)
from ._blindspot import blindspot as blindspot, partial_exposure as partial_exposure
from ._classwise import classwise as classwise
from ._curvature_edit import (
    CurvatureEdit as CurvatureEdit,
    Recitation as Recitation,
    curvature_edit as curvature_edit,
    edit_matrix as edit_matrix,
    kept_directions as kept_directions,
    ranking_agreement as ranking_agreement,
    recitation as recitation,
)
from ._finetune_on_retain import finetune_on_retain as finetune_on_retain
from ._gaussian import gaussian as gaussian, random_targets as random_targets
from ._measures import (
    answer_probabilities as answer_probabilities,
    forget_quality as forget_quality,
    generated_answers as generated_answers,
    membership_auc as membership_auc,
    rouge_l as rouge_l,
    truth_ratios as truth_ratios,
)
from ._objectives import (
    graddiff_loss as graddiff_loss,
    gradient_ascent_loss as gradient_ascent_loss,
    npo_loss as npo_loss,
    simnpo_loss as simnpo_loss,
)
from ._regression_measures import (
    membership_share as membership_share,
    paired_distance as paired_distance,
    predict_values as predict_values,
    relearn_batches as relearn_batches,
    sample_errors as sample_errors,
    svc_membership_share as svc_membership_share,
    wasserstein_distance as wasserstein_distance,
)
from ._shared.attention import (
    AttentionTaps as AttentionTaps,
    attention_difference as attention_difference,
    attention_map as attention_map,
)
from ._unlearn import unlearn as unlearn
from ._wagle import (
    SparseDelta as SparseDelta,
    WeightMask as WeightMask,
    WeightScores as WeightScores,
    apply_delta as apply_delta,
    attribute_weights as attribute_weights,
    load_delta as load_delta,
    masked_updates as masked_updates,
    save_delta as save_delta,
    wagle as wagle,
)
