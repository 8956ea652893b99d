from ._atomic import (
    TemporaryFolder as TemporaryFolder,
    atomic_output as atomic_output,
    check_file as check_file,
    check_output as check_output,
    check_written as check_written,
    kept_folder as kept_folder,
    put_in_place as put_in_place,
    scratch_folder as scratch_folder,
    write_file as write_file,
    writing as writing,
)
from ._aux_files import PLANS as PLANS, copy_aux_files as copy_aux_files
from ._checkpoint import (
    CheckpointReader as CheckpointReader,
    CheckpointWriter as CheckpointWriter,
    StateDict as StateDict,
    load_state_dict as load_state_dict,
)
from ._delta import (
    SparseDelta as SparseDelta,
    apply_delta as apply_delta,
    load_delta as load_delta,
    matching as matching,
    save_delta as save_delta,
)
from ._header import TensorSpec as TensorSpec
from ._hub import (
    checkpoint_folder as checkpoint_folder,
    downloaded as downloaded,
    push_to_hub as push_to_hub,
    shown_name as shown_name,
    with_revision as with_revision,
)
from ._json import parse_json as parse_json, read_json as read_json
from ._map_checkpoints import (
    RECOMPUTED as RECOMPUTED,
    ChunkMap as ChunkMap,
    Chunks as Chunks,
    TensorMap as TensorMap,
    check_elementwise as check_elementwise,
    map_checkpoints as map_checkpoints,
    map_state_dicts as map_state_dicts,
)
from ._offloaded import (
    OffloadedModel as OffloadedModel,
    StoredNames as StoredNames,
    StoredState as StoredState,
    checkpoint_keys as checkpoint_keys,
    lacks_weights as lacks_weights,
    meta_model as meta_model,
    offloaded as offloaded,
    offloaded_of as offloaded_of,
    refuse_meta as refuse_meta,
)
from ._pretrained import (
    from_pretrained as from_pretrained,
    load_config as load_config,
    load_model as load_model,
    model_class as model_class,
    refuse_packed as refuse_packed,
    save_model as save_model,
)
from ._recode import recode_checkpoint as recode_checkpoint, save_recoded as save_recoded
from ._tagged import load_tagged as load_tagged, save_tagged as save_tagged
from ._yaml import YamlLoader as YamlLoader, read_yaml as read_yaml
