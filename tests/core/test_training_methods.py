"""What all methods that train have in common: the same options, checked first; on any exception a restored model."""

import copy

import numpy as np
import pytest
import torch

from models import tiny
from weightsmith.adapt import bone, kappatune, lift
from weightsmith.core.errors import CalibrationError, HyperparameterError, LayerNotFoundError, UnsupportedModelError
from weightsmith.core.training import FIT_DEFAULTS, FitOptions, check_options, fit
from weightsmith.grow import learngene, mixture_growth
from weightsmith.merge import bang
from weightsmith.quantize import lsq, ofq, synapse
from weightsmith.sparsify import spdf
from weightsmith.testing import InterruptAt, Snapshot, count_operations, evenly
from weightsmith.train import loss_reweighting, meta_rescaling, pld, weight_compander

METHODS = {
    bone: {"r": 8},
    lift: {"density": 0.2},
    kappatune: {"rank": 2, "top_p": 0.5},
    spdf: {},
    pld: {"teacher": tiny("llama")[0]},
    loss_reweighting: {},
    meta_rescaling: {},
    weight_compander: {"learn": True},
    learngene: {"teacher": tiny("llama")[0], "stages": 1, "depth": 3, "tune_epochs": 1},
    mixture_growth: {},
    bang: {},
}


@pytest.fixture(params=METHODS, ids=lambda method: method.__name__)
def method(request):
    return request.param


def problem(method):
    """A model with a frozen part, a part in evaluation mode and gradients, and samples for it."""
    if method is meta_rescaling:
        model, batch = tiny("vit")
        samples = [{"pixel_values": x, "labels": torch.tensor(n % 2)} for n, x in enumerate(batch["pixel_values"])]
    else:
        model, batch = tiny("llama")
        samples = [{"input_ids": ids, "labels": ids} for ids in batch["input_ids"][:, :12]]
    model.train()
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    return model, samples * 2


TOKENS = tiny("llama")[1]["input_ids"][:, :12]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", [each for each in METHODS if each is not meta_rescaling], indirect=True)
def test_tokens_without_labels_are_their_own(method):
    trained = []
    for samples in ([{"input_ids": ids, "labels": ids} for ids in TOKENS], [{"input_ids": ids} for ids in TOKENS]):
        torch.manual_seed(0)
        model = tiny("llama")[0]
        method(model, samples, **{"epochs": 1, "batch_size": 4, **METHODS[method]})
        trained.append(torch.cat([value.flatten() for value in model.parameters()]))
    assert torch.equal(*trained)


@pytest.mark.parametrize(
    ("method", "options"), [(pld, {"teacher": tiny("bert")[0]}), (loss_reweighting, {}), (meta_rescaling, {})]
)
def test_a_classifier_needs_labels(method, options):
    with pytest.raises(CalibrationError, match=r"a batch without labels: found \['input_ids'\]"):
        method(tiny("bert")[0], [{"input_ids": ids} for ids in TOKENS], epochs=1, **options)


def snapshot(model):
    """All that a failed training must leave unchanged, in comparable form."""
    values = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    flags = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    modules = {name: (type(module), module.training, [*vars(module)]) for name, module in model.named_modules()}
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    return values, flags, modules, hooks, model.config.to_dict()


def assert_unchanged(model, before):
    values, flags, *rest = snapshot(model)
    assert rest == [*before[2:]]
    assert values.keys() == before[0].keys()
    for name, value in values.items():
        assert torch.equal(value, before[0][name]), name
    for name, (flag, gradient) in flags.items():
        assert flag == before[1][name][0], name
        assert gradient is before[1][name][1], name
        assert gradient is None or bool((gradient == 1).all()), name


@pytest.mark.parametrize("step", [2, "end"])
def test_an_interrupt_restores_everything(method, step, monkeypatch):
    model, samples = problem(method)
    before, identity = snapshot(model), [*model.parameters()]
    if step == "end":  # after training, before the result is there
        target, number = "weightsmith.core.results._peak_memory", 1
    else:
        target, number = "weightsmith.core.training._fit._take_step", step
    real, calls = pytest.importorskip(target.rpartition(".")[0]), []
    original = getattr(real, target.rpartition(".")[2])

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(target, interrupt)
    with pytest.raises(KeyboardInterrupt):
        method(model, samples, **METHODS[method], batch_size=4, epochs=2, learning_rate=0.01)
    assert_unchanged(model, before)
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), identity, strict=True))


@pytest.mark.parametrize("method", [lsq, ofq, spdf, synapse, weight_compander])
def test_no_note_says_that_a_frozen_embedding_was_trained(method):
    model, samples = problem(method)
    before = model.model.embed_tokens.weight.clone()
    notes = method(model, samples, epochs=1).notes
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert any("unchanged: 1 x 'model.embed_tokens.weight' (Embedding, 2,048 values)" in note for note in notes)
    assert not any("embed_tokens" in note and "but trained" in note for note in notes)


@pytest.mark.parametrize("method", [lsq, ofq, spdf, synapse, weight_compander], ids=lambda method: method.__name__)
def test_frozen_layers_stay_as_they_are_and_are_named(method):
    model, batch = tiny("mlp")
    model[2].requires_grad_(False)
    before, samples = model[2].weight.clone(), [(x, n % 4) for n, x in enumerate(batch)]
    with pytest.raises(LayerNotFoundError, match="every layer that matches is frozen"):
        method(model, samples, epochs=1, include="2")
    result = method(model, samples, epochs=1)
    assert torch.equal(model[2].weight, before)
    assert "Frozen and unchanged: 2." in result.notes
    assert [row["layer"] for row in result.layers] == ["0"]


def test_no_samples_are_refused_by_name(method):
    model, _ = problem(method)
    before = snapshot(model)
    with pytest.raises((CalibrationError, HyperparameterError), match="sample"):
        method(model, [], **METHODS[method])
    assert_unchanged(model, before)


def test_half_precision_accumulation_and_clipping_run(method):
    model, samples = problem(method)
    before = copy.deepcopy(model.state_dict())
    options = {
        "precision": "bf16",
        "accumulation_steps": 2,
        "clip_norm": 0.5,
        "warmup": 0.25,
        "epochs": 1,
        "gradient_checkpointing": method is not meta_rescaling,
    }
    result = method(model, samples, **METHODS[method], batch_size=4, learning_rate=0.01, **options)
    curve = next(values for name, values in result.curves.items() if name.endswith("training loss"))
    assert len(curve) == 2, "sixteen samples in batches of four, two per step"
    assert all(torch.tensor(curve).isfinite())
    assert result.hyper["precision"] == "bf16"
    after = model.state_dict()
    assert after.keys() != before.keys() or any(not torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not getattr(model, "is_activation_checkpointing", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lerning_rate": 0.1}, "unknown option 'lerning_rate'. Did you mean 'learning_rate'?"),
        ({"learning_rate": -0.1}, "learning_rate: found -0.1, expected a number >= 0"),
        ({"epochs": 0}, "epochs: found 0, expected a whole number >= 1"),
        ({"batch_size": 2.5}, "batch_size: found 2.5"),
        ({"accumulation_steps": 0}, "accumulation_steps: found 0"),
        ({"precision": "int8"}, "precision: found 'int8', expected 'no', 'bf16' or 'fp16'"),
        ({"precision": "fp16"}, "precision: found 'fp16' for a model on the CPU"),
        ({"clip_norm": 0}, "clip_norm: found 0"),
        ({"scheduler": "stairs"}, "scheduler: found 'stairs'"),
        ({"warmup": 1.0}, "warmup: found 1.0"),
        ({"final_learning_rate_ratio": 1.5}, "final_learning_rate_ratio: found 1.5"),
        ({"weight_decay": float("nan")}, "weight_decay: found nan"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing: found 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_options_are_refused_first(options, message):
    for method, own in METHODS.items():
        model, samples = problem(method)
        before = snapshot(model)
        with pytest.raises(HyperparameterError) as error:
            method(model, samples, **own, **options)
        assert message in str(error.value)
        assert_unchanged(model, before)


def test_options_may_be_numbers_of_numpy():
    given = {"learning_rate": np.float32(0.5), "epochs": np.int64(2), "warmup": np.float64(0.25)}
    _, samples = problem(fit)
    results = []
    for options in (given, {name: value.item() for name, value in given.items()}):
        model = problem(fit)[0]
        results.append((fit(model, samples, **options).steps, *model.state_dict().values()))
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*results, strict=True))
    check_options(given)
    with pytest.raises(HyperparameterError, match=r"epochs: found np.float64\(2.0\), expected a whole number >= 1"):
        check_options({"epochs": np.float64(2.0)})


def test_gradient_checkpointing_is_the_models_own():
    plain, batch = tiny("llama")
    other = copy.deepcopy(plain)
    samples = [{"input_ids": ids} for ids in batch["input_ids"]]
    runs = [fit(plain, samples, batch_size=4), fit(other, samples, batch_size=4, gradient_checkpointing=True)]
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-6)
    with pytest.raises(UnsupportedModelError, match="gradient_checkpointing: found Sequential, which has none"):
        fit(tiny("mlp")[0], [(torch.ones(12), 0)], gradient_checkpointing=True)


def test_meta_rescaling_refuses_gradient_checkpointing():
    model, samples = problem(meta_rescaling)
    before = snapshot(model)
    with pytest.raises(UnsupportedModelError, match="gradient checkpointing"):
        meta_rescaling(model, samples, gradient_checkpointing=True)
    assert_unchanged(model, before)


def test_defaults_are_stated_once(method):
    assert method.fit_defaults.keys() == FIT_DEFAULTS.keys() == FitOptions.__annotations__.keys()
    assert method.fit_defaults["scheduler"] in ("constant", "linear", "cosine")


@pytest.mark.slow
def test_a_stop_at_any_operation_restores_everything(method):
    """Thirty places spread over the whole call: before, while and after it trains."""
    options = {**METHODS[method], "batch_size": 4, "learning_rate": 0.01}
    model, samples = problem(method)
    _, total = count_operations(lambda: method(model, samples, **options))
    for operation in evenly(total, 30):
        model, samples = problem(method)
        before = Snapshot(model)
        with pytest.raises(KeyboardInterrupt), InterruptAt(operation):
            method(model, samples, **options)
        assert before.changes(model) == [], f"operation {operation} of {total}"


@pytest.mark.parametrize("place", ["prepare", "backward", "clip_grad_norm_"])
def test_what_accelerate_leaves_behind_is_removed(place, monkeypatch):
    from accelerate import Accelerator

    model, samples = problem(loss_reweighting)
    before = Snapshot(model)

    def stop(*_, **__):
        raise KeyboardInterrupt

    original = getattr(Accelerator, place)
    monkeypatch.setattr(
        Accelerator, place, (lambda *a, **k: (original(*a, **k), stop())) if place == "prepare" else stop
    )
    with pytest.raises(KeyboardInterrupt):
        fit(model, samples, clip_norm=1.0)
    assert before.changes(model) == []
