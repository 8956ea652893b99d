from ._d2nwg import (
    Hypernetwork as Hypernetwork,
    OrderedEncoder as OrderedEncoder,
    SetEncoder as SetEncoder,
    WeightDiffusion as WeightDiffusion,
    WeightVAE as WeightVAE,
    d2nwg as d2nwg,
    describe as describe,
    select as select,
)
from ._d2nwg_layers import d2nwg_layers as d2nwg_layers, draw_layer as draw_layer
from ._know.controls import matched_learning_rates as matched_learning_rates, matched_shrink as matched_shrink
from ._know.method import know as know
from ._know.network import HistoryNet as HistoryNet
from ._know.predictor import KnowPredictor as KnowPredictor
from ._know.smooth import SmoothRule as SmoothRule
from ._know.trajectory import ForgettingTrajectory as ForgettingTrajectory, Trajectory as Trajectory
from ._zoo import WeightZoo as WeightZoo
