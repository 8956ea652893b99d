"""Replay: what is kept, what comes out of it, and how it is mixed in."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from weightsmith.continual import Replay
from weightsmith.core.errors import CalibrationError, HyperparameterError


def samples(count, classes=3, start=0):
    return [
        {"x": torch.tensor([float(n)]), "labels": torch.tensor(n % classes), "logits": torch.full((2,), -float(n))}
        for n in range(start, start + count)
    ]


def numbers(replay):
    return [int(replay[place]["x"]) for place in range(len(replay))]


def test_per_class_counts_and_named_fields_survive_resizing():
    replay = Replay(4, generator=torch.Generator().manual_seed(0))
    replay.add(samples(30))
    replay.add(samples(10, classes=1, start=90))
    for per_class in (4, 2, 10):
        replay.resize(per_class)
        if per_class == 10:
            replay.add(samples(60, start=200))
        counts = Counter(int(replay[place]["labels"]) for place in range(len(replay)))
        assert set(counts.values()) == {per_class}
        for place in range(len(replay)):
            sample = replay[place]
            assert list(sample) == ["x", "labels", "logits"]
            assert sample["logits"].tolist() == [-sample["x"].item()] * 2


def test_every_sample_is_kept_equally_often_whenever_it_came():
    counts = Counter()
    for seed in range(600):
        replay = Replay(4, generator=torch.Generator().manual_seed(seed))
        for start in (0, 4, 8, 12):
            replay.add(samples(4, classes=1, start=start))
        replay.resize(3)
        counts.update(numbers(replay))
    expected = 600 * 3 / 16
    assert sum(counts.values()) == 1800
    assert all(abs(counts[n] - expected) < 5 * expected**0.5 for n in range(16))


def test_batches_have_new_samples_once_and_stored_ones_in_each():
    replay = Replay(2, generator=torch.Generator().manual_seed(0))
    replay.add(samples(30))
    stored = sorted(numbers(replay))
    loader = replay.mixed_into(samples(10, start=100), batch_size=4)
    seen = []
    for batch in loader:
        x = batch["x"].flatten().int().tolist()
        assert sorted(x[-6:]) == stored
        assert batch["logits"][:, 0].tolist() == (-batch["x"].flatten()).tolist()
        seen += x[:-6]
    assert sorted(seen) == list(range(100, 110))
    drawn = [batch["x"][4:].flatten().int().tolist() for batch in replay.mixed_into(samples(40), 4, per_batch=2)]
    assert all(len(set(each)) == 2 and set(each) <= set(stored) for each in drawn)
    assert len({tuple(each) for each in drawn}) > 1


def test_texts_are_one_class_and_are_padded():
    replay = Replay(2)
    ids = [torch.arange(1, 3 + n) for n in range(5)]
    replay.add([{"input_ids": each, "labels": each} for each in ids])
    assert len(replay) == 2
    new = [{"input_ids": torch.arange(1, 9), "labels": torch.arange(1, 9)}]
    (batch,) = replay.mixed_into(new, pad_token_id=7)
    assert batch["input_ids"].shape == (3, 8)
    assert (batch["labels"] == -100).any()


def test_equal_seeds_give_equal_choices():
    first, second = (Replay(2, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    for replay in (first, second):
        replay.add(samples(50))
    assert numbers(first) == numbers(second)


def test_bad_input_is_refused():
    for bad in (0, -1):
        with pytest.raises(HyperparameterError, match="per_class"):
            Replay(bad)
    replay = Replay(2)
    replay.add(samples(6))
    with pytest.raises(HyperparameterError, match="per_batch"):
        replay.mixed_into(samples(4), per_batch=0)
    with pytest.raises(CalibrationError):
        replay.mixed_into([])
    with pytest.raises(CalibrationError, match="expected"):  # other fields than the stored ones have
        next(iter(replay.mixed_into([{"x": torch.zeros(1), "labels": torch.tensor(0)}])))


def test_labels_may_be_numbers_of_numpy():
    replay = Replay(per_class=2, generator=torch.Generator().manual_seed(0))
    replay.add([(torch.zeros(2), np.int64(n % 3)) for n in range(30)])
    assert sorted(int(label) for _, label in replay._samples()) == [0, 0, 1, 1, 2, 2]
