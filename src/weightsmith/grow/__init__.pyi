from ._distil import (
    decaying_adamw as decaying_adamw,
    distil as distil,
    soft_target_loss as soft_target_loss,
    teacher_logits as teacher_logits,
)
from ._expand import expand as expand
from ._learngene import (
    Learngene as Learngene,
    learngene as learngene,
    retention as retention,
    share_stages as share_stages,
)
from ._linear_expansion import LinearExpansion as LinearExpansion
from ._mixture_growth import (
    MixtureGrowth as MixtureGrowth,
    mixture_growth as mixture_growth,
    parameter_groups as parameter_groups,
)
from ._widen_net2net import LogitSum as LogitSum, grow_randomly as grow_randomly, widen_net2net as widen_net2net
