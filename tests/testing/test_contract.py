"""Every method of the catalog keeps the contract of :mod:`weightsmith.testing`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from inspect import unwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weightsmith import catalog
from weightsmith.adapt import BoneConfig, BoneLinear, LIFTAdamW
from weightsmith.continual import CLASSP, DiscreteKeyValueBottleneck
from weightsmith.core.errors import HyperparameterError, WeightsmithError
from weightsmith.core.io import load_state_dict
from weightsmith.core.results import Result
from weightsmith.merge import ZeroShotHead, fisher
from weightsmith.signature import read
from weightsmith.testing import (
    ARCHITECTURES,
    REGRESSIONS,
    check_loss,
    check_module,
    check_optimizer,
    check_parametrization,
    merge_checks,
    transform_checks,
)
from weightsmith.train import (
    Compander,
    LossReweighter,
    PLDLoss,
    compand,
    dist_loss,
    dkd_loss,
    fold_companders,
    kd_loss,
    list_mle_loss,
    pld_loss,
)

SIGNATURES = {name: read(catalog.load(m.commands[name].entry)) for name, m in catalog.commands().items()}
TRANSFORMS = {name: s for name, s in SIGNATURES.items() if s.model is not None and not s.measures}
SMALL = {
    "bone": {"r": 2},
    "kappatune": {"rank": 2, "dropout": 0.0},
    "d2nwg-layers": {
        "include": ["*[vo]*", "?"],
        "share": 1.0,
        "chunk": 16,
        "latent": 4,
        "vae_steps": 5,
        "steps": 5,
        "candidates": 16,
    },
    "classwise": {"class_name": "1", "fraction": 0.1},
    "curvature-edit": {"include": "*", "memory": 1.0},
    "expand": {"depth": 3},
    "learngene": {"stages": 1},
    "lsq": {"learning_rate": 1e-5},  # the first step of AdamW is the sign of the gradient: tiny ones turn by rounding
    "ofq": {"learning_rate": 1e-5},
    "wagle": {"controls": False},
    "weight-compander": {"learn": True},
    "weight-aligning": {"num_old": 1},
}
"""Options that make a method small enough for a test, or that it cannot do without."""

STACKED = ("t5", "cnn", "mlp")
NEXT_TOKENS = ("llama", "qwen3", "gemma3", "gpt2", "opt", "t5", "mixtral", "qwen3_moe")
REFUSES = {
    "classwise": NEXT_TOKENS,
    "curvature-edit": ("t5",),
    "expand": STACKED,
    "learngene": STACKED,
    "mixture-growth": ("cnn", "mlp"),
    "meta-rescaling": NEXT_TOKENS,
    "blindspot": ARCHITECTURES,
    "gaussian": ARCHITECTURES,
    "weight-aligning": NEXT_TOKENS,
}
"""Architectures a method refuses by name; it must work on all others."""

ON_REGRESSIONS = ("blindspot", "gaussian")
"""Methods that work on networks with real numbers as outputs only."""

FAST = {
    "llama": ("changes", "refuses", "restores", "names", "handles"),
    "gpt2": ("ignores",),
    "mixtral": ("changes", "refuses-"),
    "t5": ("changes", "refuses-"),
    "cnn": ("changes", "refuses-", "handles_other"),
    "mlp_regression": ("changes", "refuses", "restores", "handles"),
    "bert_regression": ("changes", "ignores"),
}
"""The checks that always run, by the beginnings of their names. The others are slow, as are all of d2nwg-layers."""


def cases():
    for name, signature in TRANSFORMS.items():
        training = {"batch_size": 8, "epochs": 1, "tune_epochs": 1}
        options = {**SMALL.get(name, {}), **{key: value for key, value in training.items() if key in signature.fields}}
        for model in (*ARCHITECTURES, *(REGRESSIONS if name in ON_REGRESSIONS else ())):
            checks = transform_checks(
                signature.function, options=options, refuses=REFUSES.get(name, ()), models=[model]
            )
            for check, run in checks:
                fast = name != "d2nwg-layers" and check.startswith(FAST.get(model, "none"))
                marks = [] if fast else [pytest.mark.slow]
                yield pytest.param(run, id=f"{name}-{check}", marks=marks)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", cases())
def test_transforms(check):
    check()


def fisher_of_parts(checkpoints: Sequence[Path], out: Path, *, alpha: float = 0.5, overwrite: bool = False) -> Result:
    """Merge by Fisher information, here the squares of the weights."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.safetensors" for number in range(len(checkpoints))]
        for file, checkpoint in zip(files, checkpoints, strict=True):
            try:
                state = load_state_dict(checkpoint)
            except WeightsmithError:
                state = {}
            squares = {name: value.float().square() for name, value in state.items() if value.float().isfinite().all()}
            save_file(squares, file)
        return fisher(checkpoints, out, fishers=files, alpha=alpha, overwrite=overwrite)


@pytest.mark.parametrize("checks", [transform_checks, merge_checks])
@pytest.mark.parametrize(("names", "found"), [({"models": []}, "none"), ({"refuses": ["mpl"]}, "mpl")])
def test_architectures_that_would_not_be_checked_are_refused(checks, names, found):
    function = SIGNATURES["magnitude" if checks is transform_checks else "soup"].function
    with pytest.raises(HyperparameterError, match=f"found {found}, expected"):
        next(checks(function, **names))


MERGE_REFUSES = {"rebasin": ("mixtral",)}
"""Experts that are stacked in memory and several tensors on disk cannot be permuted there."""

WITH_BASE = ("ties", "dare", "task-arithmetic")
MERGES = {
    name: fisher_of_parts if name == "fisher" else signature.function
    for name, signature in SIGNATURES.items()
    if catalog.commands()[name].verb == "merge" and signature.paths and name != "scale-adapter"
}
"""The commands on several checkpoints; one scales an adapter."""


def merge_cases():
    for name, function in MERGES.items():
        for model in ("llama", "bert", "mixtral"):
            marks = [] if model == "llama" else [pytest.mark.slow]
            count, refuses = 3 if name in WITH_BASE else 2, MERGE_REFUSES.get(name, ())
            for check, run in merge_checks(function, count=count, refuses=refuses, models=[model]):
                yield pytest.param(run, id=f"{name}-{check}", marks=marks)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("check", merge_cases())
def test_merges(check):
    check()


LOSSES = {
    loss.__name__: (loss, options)
    for loss, options in (
        (kd_loss, {}),
        (dist_loss, {}),
        (dkd_loss, {}),
        (list_mle_loss, {}),
        (pld_loss, {"reductions": True}),
    )
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss):
    function, options = LOSSES[loss]
    check_loss(unwrap(function), **options)


OPTIMIZERS = [
    (LIFTAdamW, {}),
    (LIFTAdamW, {"free_gradients": True}),
    (LIFTAdamW, {"density": None}),
    (LIFTAdamW, {"update_interval": 2}),
    (CLASSP, {}),
    (CLASSP, {"power": 2.0, "foreach": True}),
    (CLASSP, {"power": 1.5, "eps": 0.0, "threshold": "q0.5"}),
    (CLASSP, {"scale": False, "weight_decay": 0.01, "error_if_nonfinite": False}),
]


@pytest.mark.filterwarnings("ignore:the budget covers")
@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS, ids=str)
def test_optimizers(cls, options):
    check_optimizer(cls, **options)


@pytest.mark.parametrize("options", [{}, {"learn": True}, {"function": "erf"}, {"start": "raw"}], ids=str)
def test_parametrizations(options):
    check_parametrization(partial(compand, **options), fold_companders, exact=options.get("start") != "raw")


def bone_linear(variant):
    torch.manual_seed(0)
    config = BoneConfig(r=4, mini_r=2, variant=variant, init_weights=False)
    return BoneLinear(nn.Linear(8, 4).requires_grad_(False), "default", config, r=4)


def bottleneck():
    generator = torch.Generator().manual_seed(0)
    made = DiscreteKeyValueBottleneck(8, 3, codebooks=4, pairs=4, key_dim=2, generator=generator)
    made.init_keys(ROWS, generator=generator)
    made.partial_fit(ROWS, torch.tensor([0, 1, 2, 0, 1]), epochs=3, generator=generator)
    return made


ROWS = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
MODULES = {
    "BoneLinear, bat": (partial(bone_linear, "bat"), ROWS),
    "BoneLinear, bat-row": (partial(bone_linear, "bat-row"), ROWS),
    "BoneLinear, miss": (partial(bone_linear, "miss"), ROWS),
    "BoneLinear, mini": (partial(bone_linear, "mini"), ROWS),
    "DiscreteKeyValueBottleneck": (bottleneck, ROWS),
    "Compander": (partial(Compander, 1.0, learn=True), ROWS),
    "LossReweighter": (LossReweighter, ROWS[0]),
    "LossReweighter, window": (partial(LossReweighter, window=5, warmup_steps=1), ROWS[0]),
    "PLDLoss": (PLDLoss, (ROWS, ROWS.flip(0), torch.arange(5))),
    "ZeroShotHead": (partial(ZeroShotHead, ROWS[:, None]), ROWS),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    check_module(*MODULES[name])
