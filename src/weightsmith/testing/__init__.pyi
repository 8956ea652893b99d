from ._interrupts import InterruptAt as InterruptAt, count_operations as count_operations, evenly as evenly
from ._merge import check_merge as check_merge, merge_checks as merge_checks
from ._models import (
    ARCHITECTURES as ARCHITECTURES,
    MIXTURES as MIXTURES,
    PLAIN as PLAIN,
    REGRESSIONS as REGRESSIONS,
    TRANSFORMERS as TRANSFORMERS,
    samples as samples,
    tiny as tiny,
)
from ._parts import (
    check_loss as check_loss,
    check_module as check_module,
    check_optimizer as check_optimizer,
    check_parametrization as check_parametrization,
)
from ._state import Snapshot as Snapshot, differences as differences, outputs as outputs
from ._transform import check_transform as check_transform, transform_checks as transform_checks
