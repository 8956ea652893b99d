from ._compressed import save_compressed as save_compressed
from ._dsnot import dsnot as dsnot, refine_mask as refine_mask
from ._magnitude import magnitude as magnitude
from ._sparsegpt import sparsegpt as sparsegpt
from ._spdf import StaticSparsity as StaticSparsity, forward_flops as forward_flops, spdf as spdf
from ._wanda import wanda as wanda
from ._wina.method import teal as teal, wina as wina
