"""The contracts of what is built into a user's own training: optimizers, losses, parametrizations, modules."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weightsmith.core.errors import WeightsmithError
from weightsmith.testing._state import Snapshot, differences, same

__all__ = ["check_loss", "check_module", "check_optimizer", "check_parametrization"]

NOT_FINITE = (math.nan, math.inf)


def check_optimizer(cls: Callable[..., torch.optim.Optimizer], **options: Any) -> None:
    """Check that an optimizer behaves as PyTorch's own do.

    It lowers a loss, keeps element types, leaves alone what has no gradient or is frozen, goes on exactly as before
    from a pickled copy, also of between a backward pass and its step, and from its state dict, takes closures and later
    groups, and refuses negative rates and damaged states.

    Parameters
    ----------
    cls : type
        Called as ``cls(parameters, lr=..., **options)``.
    **options
        Its other arguments.

    Raises
    ------
    AssertionError
        If something of this does not hold.

    Examples
    --------
    >>> check_optimizer(torch.optim.AdamW)
    """
    name = getattr(cls, "__name__", repr(cls))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model, step = _problem(dtype)
        optimizer = cls([parameter for parameter in model.parameters() if parameter.ndim == 2], lr=0.01, **options)
        still = copy.deepcopy(model.state_dict())
        losses = [step(model, optimizer) for _ in range(30)]
        assert losses[-1] < losses[0], f"{name}, {dtype}: the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"
        assert all(p.dtype == dtype for p in model.parameters()), f"{name}: parameters are no longer {dtype}"
        for key in ("0.bias", "2.bias"):
            assert same(model.state_dict()[key], still[key]), f"{name}: changed {key}, which it was not given"

    make = partial(cls, lr=0.01, **options)
    for how in ("state dict", "pickle", "deepcopy"):
        model, step = _problem()
        optimizer = make([parameter for parameter in model.parameters() if parameter.ndim == 2])
        for _ in range(3):
            step(model, optimizer)
        other, again = _resumed(how, model, optimizer, make)
        for _ in range(3):
            step(model, optimizer)
            step(other, again)
        gone = differences(model, other)
        assert not gone, f"{name}: after {how} in the middle, training goes on differently: {gone}"
        if how != "state dict":
            _loss(model).backward()
            other, again = _resumed(how, model, optimizer, make)
            for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
                theirs.grad = None if ours.grad is None else ours.grad.clone()  # a pickled tensor has lost it
            for steps in (optimizer, again):
                steps.step()
            gone = differences(model, other)
            assert not gone, f"{name}: {how} between backward and step loses something: {gone}"
    _must_refuse(
        lambda: optimizer.load_state_dict({"state": {}, "param_groups": []}), f"{name}: a state of other groups"
    )

    model, step = _problem()
    first, last = (parameter for parameter in model.parameters() if parameter.ndim == 2)
    optimizer = cls([first], lr=0.01, **options)
    optimizer.add_param_group({"params": [last], "lr": 0.0})
    before = last.detach().clone()
    step(model, optimizer)
    assert same(last.detach(), before), f"{name}: a group with lr=0 moved"
    model.zero_grad()
    unchanged = copy.deepcopy(model)
    optimizer.step()
    moved = [key for key in differences(model, unchanged) if "weight" in key]
    assert not moved, f"{name}: a step without gradients moved {moved}"

    def closure() -> float:
        loss = _loss(model)
        loss.backward()
        return loss.item()

    expected = float(_loss(model))
    found = optimizer.step(closure)
    assert found == expected, f"{name}: step(closure) returns {found}, the loss is {expected}"
    _must_refuse(lambda: cls([first], lr=-0.1, **options), f"{name}(lr=-0.1)")


def check_loss(
    loss: Callable[..., Tensor], *, ignores: bool = True, reductions: bool = False, rows: int = 6, classes: int = 5
) -> None:
    """Check a loss of student logits, teacher logits and labels.

    Its value is finite and its gradient exact; element types stay (half precision is computed in at least float32);
    rows whose label is -100 do not count; classes whose logit is minus infinity give no NaN; labels may have 8 bits;
    shapes that do not fit, NaN from the teacher, labels out of range and unknown reductions are refused.

    Parameters
    ----------
    loss : callable
        ``loss(student, teacher, labels)`` with logits ``[rows, classes]`` and labels ``[rows]``.
    ignores : bool, default: True
        Whether rows with the label -100 may be given.
    reductions : bool, default: False
        Whether it takes ``reduction="none" | "sum" | "mean"``.
    rows, classes : int
        Size of the inputs.

    Raises
    ------
    AssertionError
        If something of this does not hold.

    Examples
    --------
    >>> from weightsmith.train import kd_loss
    >>> check_loss(kd_loss)
    """
    name = getattr(loss, "__name__", repr(loss))
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.arange(rows) % classes
    exact = loss(student, teacher, labels)
    assert exact.dtype == torch.float64, f"{name}: float64 logits give {exact.dtype}"
    assert exact.ndim == 0, f"{name}: found shape {tuple(exact.shape)}, expected one number"
    assert exact.isfinite(), f"{name}: found {exact}"
    leaf = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, labels), leaf), f"{name}: wrong gradient"
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        rounded = loss(student.to(dtype), teacher.to(dtype), labels)
        gap = abs(float(rounded) - float(exact)) / max(1.0, abs(float(exact)))
        assert gap < tolerance, f"{name}: {dtype} logits give {float(rounded):.6g}, float64 {float(exact):.6g}"
    if ignores:
        kept = labels.clone()
        kept[::3] = -100
        some, alone = loss(student, teacher, kept), [x[kept != -100] for x in (student, teacher, labels)]
        assert torch.allclose(some, loss(*alone)), f"{name}: rows with the label -100 count: {some} for {loss(*alone)}"
        leaf = student.clone().requires_grad_()
        nothing = loss(leaf, teacher, torch.full_like(labels, -100))
        nothing.backward()
        assert _finite(leaf.grad), f"{name}: NaN gradient if no row counts"
    masked = student.clone().index_fill_(1, torch.tensor([classes - 1]), -math.inf).requires_grad_()
    away = teacher.index_fill(1, torch.tensor([classes - 1]), -math.inf)
    value = loss(masked, away, labels % (classes - 1))
    value.backward()
    assert value.isfinite(), f"{name}: a class at minus infinity in both gives {value}"
    assert _finite(masked.grad), f"{name}: and a NaN gradient"
    small = loss(student, teacher, labels.to(torch.uint8))
    assert torch.equal(small, exact), f"{name}: labels of 8 bits give {small} for {exact}"
    away = student.clone()
    away[0, labels[0]] = -math.inf
    _must_refuse(lambda: loss(away, teacher, labels), f"{name} with a label's own logit at minus infinity")
    broken = teacher.clone()
    broken[0, 0] = math.nan
    _must_refuse(lambda: loss(student, broken, labels), f"{name} with NaN from the teacher")
    for wrong in (classes, -1):
        _must_refuse(partial(loss, student, teacher, torch.full_like(labels, wrong)), f"{name} with the label {wrong}")
    _must_refuse(lambda: loss(student, teacher[:, :-1], labels), f"{name} with a teacher of fewer classes")
    if reductions:
        each = loss(student, teacher, labels, reduction="none")
        assert each.shape == labels.shape, f"{name}: reduction='none' gives {tuple(each.shape)}"
        assert torch.allclose(each.mean(), exact), f"{name}: the mean of reduction='none' is not the mean"
        assert torch.allclose(each.sum(), loss(student, teacher, labels, reduction="sum")), f"{name}: nor the sum"
        _must_refuse(lambda: loss(student, teacher, labels, reduction="median"), f"{name}(reduction='median')")


def check_parametrization(
    install: Callable[[nn.Module], Any], remove: Callable[[nn.Module], Any], *, exact: bool = True
) -> None:
    """Check a parametrization of a model's weights.

    The parametrized model trains, and is copied and saved as it is; removing it leaves a plain model that
    computes the same; installing it twice, or on weights that are not finite, is refused with nothing changed.

    Parameters
    ----------
    install, remove : callable
        Put it on a model, in place, and take it off.
    exact : bool, default: True
        Whether installing leaves the outputs unchanged (to rounding).

    Raises
    ------
    AssertionError
        If something of this does not hold.

    Examples
    --------
    >>> from weightsmith.train import compand, fold_companders
    >>> check_parametrization(compand, fold_companders)
    """
    name = getattr(install, "__name__", repr(install))
    model, step = _problem()
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    before, plain = model(inputs).detach(), Snapshot(model)
    install(model)
    if exact:
        gap = float((model(inputs) - before).abs().max())
        assert gap < 1e-5, f"{name}: installing it changes the outputs by {gap}"
    _must_refuse(lambda: install(model), f"{name} twice")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    first = step(model, optimizer)
    assert step(model, optimizer) < first, f"{name}: the parametrized model does not train"
    expected = model(inputs).detach()
    loaded, _ = _problem()
    install(loaded)
    loaded.load_state_dict(model.state_dict())
    copies = {"deepcopy": copy.deepcopy(model), "state dict": loaded}
    for how, other in copies.items():
        assert same(other(inputs).detach(), expected), f"{name}: {how} computes other outputs"
    remove(model)
    assert torch.allclose(model(inputs), expected, atol=1e-6), f"{name}: removing it changes the outputs"
    left = [change for change in plain.changes(model) if "values" not in change and "gradient" not in change]
    left = [change for change in left if "another tensor" not in change]
    assert not left, f"{name}: removing it leaves {left}"
    for value in NOT_FINITE:
        model, _ = _problem()
        with torch.no_grad():
            dict(model.named_parameters())["2.weight"][0, 0] = value
        untouched = Snapshot(model)
        _must_refuse(partial(install, model), f"{name} with {value} in 2.weight")
        assert not untouched.changes(model), f"{name}: refused {value}, and left {untouched.changes(model)[:3]}"


def check_module(make: Callable[[], nn.Module], inputs: Tensor | tuple[Any, ...]) -> None:
    """Check a module: saved, copied and cast it goes on the same, and every parameter gets a gradient.

    Parameters
    ----------
    make : callable
        Makes the module, always the same one.
    inputs : Tensor or tuple
        What it is called with.

    Raises
    ------
    AssertionError
        If something of this does not hold.

    Examples
    --------
    >>> check_module(lambda: nn.Linear(3, 2), torch.rand(4, 3))
    """
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    torch.manual_seed(0)
    module = make()
    name = type(module).__name__
    expected = module(*given)
    states: Mapping[str, Any] = module.state_dict()
    stream = io.BytesIO()
    torch.save(states, stream)
    stream.seek(0)
    loaded = make()
    loaded.load_state_dict(torch.load(stream))
    copies = {"state dict": loaded, "deepcopy": copy.deepcopy(module), "pickle": pickle.loads(pickle.dumps(module))}
    after = module(*given)  # of a module with a state of its own it may be another
    for how, other in copies.items():
        assert same(other(*given), after), f"{name}: {how} goes on with other outputs"
    if expected.requires_grad:
        expected.float().square().sum().backward()
    none = [key for key, parameter in module.named_parameters() if parameter.requires_grad and parameter.grad is None]
    assert not none, f"{name}: no gradient for {none}"
    for dtype in (torch.bfloat16, torch.float64):
        cast = [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in given]
        found = copy.deepcopy(module).to(dtype)(*cast)
        assert found.dtype in (dtype, torch.float32), f"{name}: {dtype} inputs give {found.dtype}"
        assert torch.allclose(found.float(), expected.float(), rtol=0.1, atol=0.1), f"{name}: other outputs in {dtype}"


def _problem(dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, Callable[[nn.Module, Any], float]]:
    """A small network, and a step of a regression for it; equal calls give equal numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8)).to(dtype)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        loss = _loss(model)
        loss.backward()
        optimizer.step()
        return loss.item()

    return model, step


def _loss(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(32, n, generator=generator).to(next(model.parameters()).dtype) for n in (6, 8))
    return (model(x) - y).square().mean()


def _resumed(
    how: str, model: nn.Module, optimizer: torch.optim.Optimizer, make: Callable[[Any], torch.optim.Optimizer]
) -> tuple[nn.Module, torch.optim.Optimizer]:
    if how == "state dict":
        other = copy.deepcopy(model)
        again = make([parameter for parameter in other.parameters() if parameter.ndim == 2])
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        return other, again
    both = (model, optimizer)
    return copy.deepcopy(both) if how == "deepcopy" else pickle.loads(pickle.dumps(both))


def _finite(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.isfinite().all())


def _must_refuse(call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except (WeightsmithError, ValueError):
        return
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    raise AssertionError(f"{what}: not refused")
