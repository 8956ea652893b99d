from ._atomic import atomic_output as atomic_output, carry_companions as carry_companions, check_output as check_output
from ._checkpoint import (
    CheckpointReader as CheckpointReader,
    CheckpointWriter as CheckpointWriter,
    StateDict as StateDict,
    TensorSpec as TensorSpec,
    load_state_dict as load_state_dict,
)
from ._map import (
    Combine as Combine,
    Merged as Merged,
    Pass as Pass,
    Rule as Rule,
    merge_folders as merge_folders,
    merge_state_dicts as merge_state_dicts,
)
from ._offloaded import (
    Disk as Disk,
    StoredState as StoredState,
    disk_of as disk_of,
    on_disk as on_disk,
    skeleton as skeleton,
)
from ._pretrained import load_model as load_model, model_class as model_class, save_model as save_model
