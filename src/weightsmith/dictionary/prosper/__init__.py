"""Probabilistic sparse coding: dictionary, prior, noise and posterior learnt together by truncated EM."""

from __future__ import annotations

from weightsmith.dictionary.prosper.bsc import BSC
from weightsmith.dictionary.prosper.dsc import DSC
from weightsmith.dictionary.prosper.gsc import GSC
from weightsmith.dictionary.prosper.mca import MCA
from weightsmith.dictionary.prosper.mmca import MMCA
from weightsmith.dictionary.prosper.tsc import TSC

__all__ = ["BSC", "DSC", "GSC", "MCA", "MMCA", "TSC"]
