"""An option that takes one of several words refuses every other, in commands, functions and classes."""

from __future__ import annotations

import subprocess
import sys
from inspect import unwrap

import pytest
import torch
from torch import nn

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.symmetry import find_symmetry
from weightsmith.forget import attribute_weights, unlearn
from weightsmith.grow import soft_target_loss
from weightsmith.merge import match_activations, match_weights
from weightsmith.quantize import ActivationQuantizer, prepare_qat
from weightsmith.sparsify import apply_plan, calibrate_wina
from weightsmith.train import Compander, LossReweighter, MetaRescaler, compand, loss_weights

ROWS = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
SAMPLES = [(row, n % 2) for n, row in enumerate(ROWS)]


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


MODEL, TWIN = network(), network()
SYMMETRY = find_symmetry(MODEL, ROWS)
PLAN = calibrate_wina(MODEL, [ROWS])
CALLS = [
    (match_weights, "normalize", MODEL, TWIN, SYMMETRY),
    (match_activations, "similarity", MODEL, TWIN, SYMMETRY, [ROWS]),
    (soft_target_loss, "reduction", ROWS, ROWS),
    (prepare_qat, "weights", MODEL),
    (prepare_qat, "granularity", MODEL),
    (ActivationQuantizer, "granularity", 4, ()),
    (calibrate_wina, "norms", MODEL, [ROWS]),
    (calibrate_wina, "select", MODEL, [ROWS]),
    (calibrate_wina, "allocation", MODEL, [ROWS]),
    (apply_plan, "backend", MODEL, PLAN),
    (compand, "function", MODEL),
    (compand, "start", MODEL),
    (loss_weights, "strategy", ROWS[0]),
    (attribute_weights, "method", MODEL, SAMPLES[:4], SAMPLES[4:]),
    (attribute_weights, "per", MODEL, SAMPLES[:4], SAMPLES[4:]),
    (unlearn, "objective", MODEL, SAMPLES[:4], SAMPLES[4:]),
    (unlearn, "reduction", MODEL, SAMPLES[:4], SAMPLES[4:]),
    (Compander, "function", 1.0),
    (LossReweighter, "strategy"),
    (LossReweighter, "nonfinite"),
    (MetaRescaler, "inner", SAMPLES, 2),
    (MetaRescaler, "paths", SAMPLES, 2),
    (MetaRescaler, "reduction", SAMPLES, 2),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0].__name__}-{call[1]}")
def test_an_unknown_word_is_refused_by_name(call):
    function, option, *arguments = call
    if isinstance(function, type):
        arguments.insert(0, function.__new__(function))
        function = function.__init__
    # without what checks the types of arguments in tests: users do not have it
    with pytest.raises(HyperparameterError, match=rf"^{option}: found 'nonsense', expected '\w+'.* or '\w+'$"):
        unwrap(function)(*arguments, **{option: "nonsense"})


COMMANDS = """
from weightsmith import catalog
from weightsmith.core.errors import WeightsmithError
from weightsmith.signature import read
from weightsmith.testing._transform import Case

OPTIONS = {
    "bone": {"r": 2},
    "classwise": {"class_name": "1"},
    "expand": {"depth": 3},
    "weight-aligning": {"num_old": 1},
}
KINDS = {"blindspot": "mlp_regression", "gaussian": "mlp_regression", "classwise": "mlp", "meta-rescaling": "mlp"}
tried = 0
for name, method in catalog.commands().items():
    signature = read(catalog.load(method.commands[name].entry))
    if signature.model is None or signature.measures:
        continue
    case = Case(signature, KINDS.get(name, "llama"), OPTIONS.get(name, {}))
    for option in [option for option, field in signature.fields.items() if field.choices]:
        tried += 1
        try:
            case.call(case.model(), **{option: "nonsense"})
            raise SystemExit(f"{name} takes {option}='nonsense'")
        except WeightsmithError as error:
            if not str(error).startswith(f"{option}: found 'nonsense', expected '"):
                raise SystemExit(f"{name}, {option}: {error}")
assert tried > 50, tried
"""


def test_commands_refuse_an_unknown_word_by_name():
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", COMMANDS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-500:]
