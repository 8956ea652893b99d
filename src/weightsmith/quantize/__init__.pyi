from ._gptq import gptq as gptq
from ._ofq import (
    ActivationQuantizer as ActivationQuantizer,
    ConfidenceGuidedAnnealing as ConfidenceGuidedAnnealing,
    IterativeFreezing as IterativeFreezing,
    LSQWeight as LSQWeight,
    Oscillations as Oscillations,
    StatsQ as StatsQ,
    apply_quantization as apply_quantization,
    finish_qat as finish_qat,
    initialize_activations as initialize_activations,
    lsq as lsq,
    ofq as ofq,
    prepare_qat as prepare_qat,
)
from ._ofq.callback import AnnealingCallback as AnnealingCallback
from ._packed import (
    Quantization as Quantization,
    check_packable as check_packable,
    load_quantized as load_quantized,
    pack_checkpoint as pack_checkpoint,
    save_packed as save_packed,
    unpack_checkpoint as unpack_checkpoint,
)
from ._packed_linear import PackedLinear as PackedLinear, pack_linear as pack_linear
from ._round_to_nearest import round_to_nearest as round_to_nearest
from ._synapse import (
    Exponential as Exponential,
    Measured as Measured,
    PulsedOptimizer as PulsedOptimizer,
    SoftBounds as SoftBounds,
    SynapseDevice as SynapseDevice,
    read_device as read_device,
    synapse as synapse,
    to_analog as to_analog,
    to_digital as to_digital,
)
