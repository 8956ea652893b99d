from ._batchnorm import (
    has_batchnorm as has_batchnorm,
    recalibrate_batchnorm as recalibrate_batchnorm,
    reset_batchnorm as reset_batchnorm,
)
from ._blocks import (
    Block as Block,
    block_layers as block_layers,
    rewriting as rewriting,
    stream as stream,
)
from ._depth import PLACES as PLACES, config_changes as config_changes
from ._empty import build_empty as build_empty, config_fields as config_fields, example_batch as example_batch
from ._experts import (
    find_experts as find_experts,
    find_matrices as find_matrices,
    watching_experts as watching_experts,
)
from ._find_blocks import find_blocks as find_blocks, refuse_foreign_blocks as refuse_foreign_blocks
from ._folding import fold_parametrizations as fold_parametrizations
from ._interpolation import along_line as along_line, interpolate_ as interpolate_, lerp as lerp
from ._layers import (
    VOCABULARY_HEADS as VOCABULARY_HEADS,
    Layer as Layer,
    check_weight as check_weight,
    computed_by as computed_by,
    evaluation_mode as evaluation_mode,
    exclude_frozen as exclude_frozen,
    find_layers as find_layers,
    get_module as get_module,
    matches as matches,
    own_weights as own_weights,
    patterns as patterns,
    swap_module as swap_module,
    without_fast_path as without_fast_path,
    writable as writable,
)
from ._observe import (
    Accumulator as Accumulator,
    call_checked as call_checked,
    device_of as device_of,
    observe as observe,
    quiet as quiet,
)
from ._on_demand import weights_in_memory as weights_in_memory, weights_on_demand as weights_on_demand
from ._products import products_in_float32 as products_in_float32
from ._resize import (
    CONVOLUTIONS as CONVOLUTIONS,
    RESIZABLE as RESIZABLE,
    is_depthwise as is_depthwise,
    resize as resize,
)
from ._stack import (
    HEAD_COUNTS as HEAD_COUNTS,
    Stack as Stack,
    block_difference as block_difference,
    find_stack as find_stack,
)
from ._text_features import text_features as text_features
from ._token_masks import StreamMasks as StreamMasks, TokenMasks as TokenMasks, token_masks as token_masks
from ._unreached import missed as missed, unreached as unreached
