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
