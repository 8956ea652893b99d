from ._find import find_symmetry as find_symmetry
from ._symmetry import (
    AxisBlock as AxisBlock,
    AxisBlocks as AxisBlocks,
    Group as Group,
    Permutations as Permutations,
    Side as Side,
    Symmetry as Symmetry,
)
from ._trace import activations_noted as activations_noted, outputs_of as outputs_of
