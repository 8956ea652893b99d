from ._condition import (
    Condition as Condition,
    ConditionReport as ConditionReport,
    condition as condition,
    condition_report as condition_report,
)
from ._curvature import (
    KroneckerFactors as KroneckerFactors,
    collect_kfac as collect_kfac,
    curvature_bands as curvature_bands,
    load_kfac as load_kfac,
    save_kfac as save_kfac,
)
from ._forgetting import (
    ForgettingCurve as ForgettingCurve,
    ForgettingProbe as ForgettingProbe,
    compare_forgetting as compare_forgetting,
    mean_nll as mean_nll,
)
from ._mode_connectivity import (
    barrier_curve as barrier_curve,
    distance as distance,
    loss_slice as loss_slice,
    mode_connectivity as mode_connectivity,
)
from ._phases.classify import (
    PHASES as PHASES,
    Phase as Phase,
    classify_phase as classify_phase,
    phase_sensitivity as phase_sensitivity,
)
from ._phases.curve import BezierCurve as BezierCurve, connectivity as connectivity, train_curve as train_curve
from ._phases.hessian import (
    HessianSummary as HessianSummary,
    hessian_summary as hessian_summary,
    largest_eigenvalue as largest_eigenvalue,
    trace_estimate as trace_estimate,
)
from ._phases.method import phases as phases
from ._phases.metrics import (
    LandscapeMetrics as LandscapeMetrics,
    landscape_metrics as landscape_metrics,
    linear_cka as linear_cka,
)
from ._phases.zoo import PhaseZoo as PhaseZoo, train_phase_zoo as train_phase_zoo
from ._rich_lazy.initializers import aligned_ as aligned_, dale_ as dale_, low_rank_ as low_rank_
from ._rich_lazy.kernels import (
    centered_alignment as centered_alignment,
    kernel_alignment as kernel_alignment,
    reduce_kernel as reduce_kernel,
    tangent_kernel as tangent_kernel,
)
from ._rich_lazy.method import (
    LazinessProbe as LazinessProbe,
    LazinessSnapshot as LazinessSnapshot,
    compare_checkpoints as compare_checkpoints,
    rich_lazy as rich_lazy,
)
from ._rich_lazy.theory import (
    effective_rank as effective_rank,
    expected_kernel_alignment as expected_kernel_alignment,
)
from ._sae_eval.codes import AttributeCodes as AttributeCodes, mean_codes as mean_codes, mse_codes as mse_codes
from ._sae_eval.dictionaries import (
    GatedSAE as GatedSAE,
    JumpReLUSAE as JumpReLUSAE,
    SparseAutoencoder as SparseAutoencoder,
    StandardSAE as StandardSAE,
    TopKSAE as TopKSAE,
    as_dictionary as as_dictionary,
    load_sae as load_sae,
    save_sae as save_sae,
)
from ._sae_eval.edits import latent_scores as latent_scores, sparse_edits as sparse_edits
from ._sae_eval.method import (
    evaluate_dictionary as evaluate_dictionary,
    find_sites as find_sites,
    sae_eval as sae_eval,
)
from ._sae_eval.sites import (
    PatchedRuns as PatchedRuns,
    Site as Site,
    collect_activations as collect_activations,
    collect_token_activations as collect_token_activations,
)
from ._sae_eval.task import AttributeTask as AttributeTask, Prompts as Prompts, ioi_task as ioi_task
from ._shared.alignment import alignment as alignment, alignment_map as alignment_map
from ._shared.spectrum import signal_to_noise as signal_to_noise, singular_values as singular_values
