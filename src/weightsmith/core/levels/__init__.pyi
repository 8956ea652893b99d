from ._grid import Grid as Grid, check_bits as check_bits, symmetric_step as symmetric_step
from ._quantization import (
    FILE as FILE,
    ActivationLevels as ActivationLevels,
    Quantization as Quantization,
    WeightLevels as WeightLevels,
    puts_on_levels as puts_on_levels,
)
