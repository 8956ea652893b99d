"""Losses of unlearning: values at the start, gradients, limits."""

from __future__ import annotations

import math
import weakref
from inspect import unwrap

import pytest
import torch
from torch import nn

from weightsmith.core.errors import CalibrationError, HyperparameterError
from weightsmith.forget import graddiff_loss, gradient_ascent_loss, npo_loss, simnpo_loss, unlearn


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
def test_check_5_npo_starts_at_2_log_2_over_beta_with_the_gradient_of_ascent(beta):
    start = torch.tensor([0.7, 2.0], dtype=torch.float64, requires_grad=True)
    loss = npo_loss(start, start.detach(), beta=beta)
    assert loss.item() == pytest.approx(2 * math.log(2) / beta, rel=1e-12)
    (ours,) = torch.autograd.grad(loss, start)
    (theirs,) = torch.autograd.grad(gradient_ascent_loss(start), start)
    torch.testing.assert_close(ours, theirs)


def test_npo_at_beta_a_tenth():
    assert npo_loss(torch.ones(1), torch.ones(1)).item() == pytest.approx(13.862944, abs=1e-5)


@pytest.mark.parametrize(("delta", "beta", "slope"), [(20.0, 0.1, -0.2384058), (20.0, 1e-9, -1.0), (-30.0, 1e-9, -1.0)])
def test_npo_gradient(delta, beta, slope):
    losses = torch.tensor([delta], dtype=torch.float64, requires_grad=True)
    npo_loss(losses, torch.zeros(1, dtype=torch.float64), beta=beta).backward()
    assert losses.grad.item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("delta", [1e4, -1e4])
def test_no_overflow(delta):
    for loss in (npo_loss(torch.tensor([delta]), torch.zeros(1)), simnpo_loss(torch.tensor([delta]))):
        assert loss.isfinite()


def test_reductions_agree():
    losses, reference = torch.rand(5), torch.rand(5)
    for loss in (
        lambda r: npo_loss(losses, reference, reduction=r),
        lambda r: simnpo_loss(losses, reduction=r),
        lambda r: gradient_ascent_loss(losses, reduction=r),
    ):
        torch.testing.assert_close(loss("none").mean(), loss("mean"))
        torch.testing.assert_close(loss("none").sum(), loss("sum"))


def test_the_reference_has_no_gradient():
    reference = torch.ones(2, requires_grad=True)
    npo_loss(torch.rand(2, requires_grad=True), reference).backward()
    assert reference.grad is None


@pytest.mark.parametrize(
    "call",
    [
        lambda x: npo_loss(x, x, beta=0.0),
        lambda x: simnpo_loss(x, beta=float("nan")),
        lambda x: graddiff_loss(x, x, retain_weight=-1.0),
        lambda x: unwrap(npo_loss)(x, x, reduction="average"),
    ],
)
def test_bad_input(call):
    with pytest.raises(HyperparameterError):
        call(torch.ones(2))


@pytest.mark.parametrize("objective", ["npo", "graddiff", "simnpo", "ascent"])
def test_sets_without_a_label_that_counts_are_refused(objective):
    labeled, ignored = ([(torch.ones(2), torch.tensor(label))] * 4 for label in (1, -100))
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    for forget, retain, name in ((ignored, labeled, "forget"), (labeled, ignored, "retain")):
        with pytest.raises(CalibrationError, match=f"no sample of the {name} set has a label that counts"):
            unlearn(model, forget, retain, objective=objective)
    assert torch.equal(model.weight, before)


def test_samples_are_not_all_in_memory_at_once():
    """To look for labels, all samples of a set were read into one list."""

    class Lazy(torch.utils.data.Dataset):
        def __init__(self):
            self.alive = self.most = 0

        def __len__(self):
            return 64

        def __getitem__(self, place):
            x = torch.randn(4)
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(x, self.gone)
            return x, -100

        def gone(self):
            self.alive -= 1

    samples = Lazy()
    with pytest.raises(CalibrationError, match="no sample of the forget set has a label that counts"):
        unlearn(nn.Linear(4, 3), samples, samples, objective="graddiff")
    assert samples.most <= 2
