"""TangleNAS: gradient-based architecture search in a network with shared weights."""

from weightsmith.search._tanglenas.loop import search
from weightsmith.search._tanglenas.method import random_search, spos, tanglenas
from weightsmith.search._tanglenas.mixing import mix_outputs
from weightsmith.search._tanglenas.samplers import DARTS, GDAS, SPOS, DrNAS, sparsemax
from weightsmith.search._tanglenas.supernet import Supernet

__all__ = [
    "DARTS",
    "GDAS",
    "SPOS",
    "DrNAS",
    "Supernet",
    "mix_outputs",
    "random_search",
    "search",
    "sparsemax",
    "spos",
    "tanglenas",
]
