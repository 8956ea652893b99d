"""Probabilistic sparse coding: dictionary, prior, noise and posterior learned together by truncated EM."""

from __future__ import annotations

from weightsmith.dictionary._prosper.bsc import BSC
from weightsmith.dictionary._prosper.dsc import DSC
from weightsmith.dictionary._prosper.gsc import GSC
from weightsmith.dictionary._prosper.mca import MCA
from weightsmith.dictionary._prosper.mmca import MMCA
from weightsmith.dictionary._prosper.tsc import TSC

__all__ = ["BSC", "DSC", "GSC", "MCA", "MMCA", "TSC"]
