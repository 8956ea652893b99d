from ._tanglenas import (
    DARTS as DARTS,
    GDAS as GDAS,
    SPOS as SPOS,
    DrNAS as DrNAS,
    Supernet as Supernet,
    mix_outputs as mix_outputs,
    random_search as random_search,
    search as search,
    sparsemax as sparsemax,
    spos as spos,
    tanglenas as tanglenas,
)
