from ._bone import BoneConfig as BoneConfig, BoneLinear as BoneLinear, BoneModel as BoneModel, bone as bone
from ._kappatune import (
    freeze_except as freeze_except,
    highest_targets as highest_targets,
    kappatune as kappatune,
    match_rank as match_rank,
    random_targets as random_targets,
    shape_matched_targets as shape_matched_targets,
    trainable_parameters as trainable_parameters,
)
from ._lift import (
    LIFTAdamW as LIFTAdamW,
    SparseDelta as SparseDelta,
    apply_delta as apply_delta,
    export_shira as export_shira,
    lift as lift,
    lift_groups as lift_groups,
    load_delta as load_delta,
    principal_mask as principal_mask,
    save_delta as save_delta,
)
