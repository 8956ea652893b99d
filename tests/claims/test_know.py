"""The digits task behind KNOW's claim: what is held apart, what is trained."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from weightsmith.claims import know as claim
from weightsmith.predict import matched_shrink


@pytest.fixture(scope="module")
def task():
    return claim.DigitsTask.make(0)


def test_stages_halve_and_the_old_classes_are_learned(task):
    sizes = task.trajectory.sizes
    assert all(small == large // 2 for small, large in pairwise(sizes))
    assert sizes[0] >= claim.BATCH
    norms = [snapshot["6.weight"].norm().item() for snapshot in task.trajectory]
    assert len(set(norms)) == 5


def test_new_classes_are_disjoint_in_training_and_test(task):
    test_x, test_y = task.test[0]
    assert set(task.y.tolist()) == set(test_y.tolist()) == set(range(5))
    pairwise = torch.cdist(test_x.flatten(1), task.x.flatten(1))
    assert pairwise.min() > 0


def test_transfer_is_repeatable_and_depends_on_its_start(task):
    trained = task.trajectory[-1]
    first = task.transfer(trained, draws=2)
    assert task.transfer(trained, draws=2) == first
    tiny = matched_shrink(trained, {k: v / 10 if v.is_floating_point() else v for k, v in trained.items()})
    assert task.transfer(tiny, draws=2) != first


def test_every_expected_arm_is_measured(monkeypatch):
    class Names(dict):
        def __missing__(self, name):
            return [0.1, 0.2, 0.3]

    monkeypatch.setattr(claim, "each_seed", lambda *_: Names())
    results = claim.run(seeds=(0, 1, 2))
    assert [result.claim for result in results] == list(claim.CLAIMS)
    for result in results:
        arms = {arm.name for arm in result.arms}
        assert {side for order in result.claim.expected for side in (order.better, order.worse)} <= arms


@pytest.mark.slow
def test_demo_transfer_reports_four_arms():
    scores = claim.digits_transfer(0, draws=1)
    assert list(scores) == ["scratch", "naive", "matched shrink", "know"]
    assert all(0.2 < score < 1 for score in scores.values())
