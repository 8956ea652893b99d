from ._compressed import decompress_checkpoint as decompress_checkpoint, save_compressed as save_compressed
from ._dsnot import dsnot as dsnot, refine_mask as refine_mask
from ._magnitude import magnitude as magnitude
from ._modhifi.method import modhifi as modhifi
from ._modhifi.selection import (
    compensate as compensate,
    select_channels as select_channels,
    subset_fidelity as subset_fidelity,
)
from ._sparsegpt import sparsegpt as sparsegpt
from ._spdf import StaticSparsity as StaticSparsity, forward_flops as forward_flops, spdf as spdf
from ._wanda import wanda as wanda
from ._wina.method import (
    apply_plan as apply_plan,
    calibrate_wina as calibrate_wina,
    plan_report as plan_report,
    remove_plan as remove_plan,
    teal as teal,
    wina as wina,
)
from ._wina.plan import ActivationPlan as ActivationPlan
