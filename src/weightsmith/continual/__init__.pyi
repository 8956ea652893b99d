from ._class_incremental import (
    class_incremental_loss as class_incremental_loss,
    clip_weights_hook as clip_weights_hook,
)
from ._classp import CLASSP as CLASSP, classp as classp
from ._dkvb import (
    BottleneckClassifier as BottleneckClassifier,
    DiscreteKeyValueBottleneck as DiscreteKeyValueBottleneck,
)
from ._dkvb.estimator import KeyValueBottleneckClassifier as KeyValueBottleneckClassifier
from ._exemplars import ExemplarMemory as ExemplarMemory, herd as herd
from ._growth import grow_head as grow_head
from ._penalties import EWC as EWC, L2SP as L2SP
from ._replay import Replay as Replay
from ._weight_aligning import (
    align_classifier as align_classifier,
    align_state_dict as align_state_dict,
    aligned as aligned,
    weight_aligning as weight_aligning,
)
