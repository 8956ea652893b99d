from ._compressed import save_compressed as save_compressed
from ._dsnot import dsnot as dsnot, refine_mask as refine_mask
from ._shared.pruning import magnitude as magnitude, sparsegpt as sparsegpt, wanda as wanda
from ._spdf import StaticSparsity as StaticSparsity, forward_flops as forward_flops, spdf as spdf
from ._wina.method import teal as teal, wina as wina
