from ._classp import CLASSP as CLASSP, classp as classp
from ._growth import grow_head as grow_head
