from ._d2nwg import (
    Hypernetwork as Hypernetwork,
    OrderedEncoder as OrderedEncoder,
    PrincipalGaussian as PrincipalGaussian,
    SetEncoder as SetEncoder,
    WeightDiffusion as WeightDiffusion,
    WeightVAE as WeightVAE,
    d2nwg as d2nwg,
    describe as describe,
    nearest as nearest,
    select as select,
    zoo_mean as zoo_mean,
)
from ._d2nwg_layers import d2nwg_layers as d2nwg_layers, draw_layer as draw_layer
from ._know import (
    ForgettingTrajectory as ForgettingTrajectory,
    HistoryNet as HistoryNet,
    KnowPredictor as KnowPredictor,
    know as know,
    matched_shrink as matched_shrink,
)
from ._zoo import WeightZoo as WeightZoo
