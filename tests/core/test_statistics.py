import pytest
import torch
from torch import nn

from processes import two_processes
from weightsmith.core.errors import CalibrationError, NonFiniteError
from weightsmith.core.linalg import inverse_cholesky
from weightsmith.core.models import Layer
from weightsmith.core.statistics import Gram, InputStatistics

LAYER = Layer("fc", nn.Linear(5, 2))


def gathered(x, mask=None, split=1, make=InputStatistics):
    statistics = make(LAYER)
    for i, part in enumerate(x.split(split)):
        statistics.update(part, None if mask is None else mask.split(split)[i])
    statistics.all_reduce()
    return statistics


def test_closed_forms():
    x = torch.randn(8, 30, 5) + torch.randn(8, 1, 5)
    statistics = gathered(x)
    assert (statistics.sequences, statistics.rows) == (8, 240)
    torch.testing.assert_close(statistics.sum_I, x.sum((0, 1)) / 8, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(statistics.square_sum_I, x.square().sum((0, 1)) / 8)
    torch.testing.assert_close(statistics.variance_I, x.var(1, correction=0).mean(0))
    torch.testing.assert_close(statistics.mean_I, x.mean((0, 1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gathered(x, make=Gram).gram_II, x.flatten(0, 1).T @ x.flatten(0, 1))


def test_what_is_made_of_a_gram_matrix_takes_its_place():
    x = torch.randn(4, 30, 5)
    means, factor = gathered(x, make=Gram), gathered(x, make=Gram)
    place = means.gram_II.data_ptr()
    gram = means.gram_II.clone()
    torch.testing.assert_close(means.moment_II, gram / 120)
    assert means.moment_II.data_ptr() == place
    place = factor.gram_II.data_ptr()
    assert torch.equal(factor.inverse_factor(0.01), inverse_cholesky(gram, 0.01))
    assert factor.inverse_factor(0.01).data_ptr() == place  # once for all layers with these inputs
    for used in (means, factor):  # neither gives another matrix under the same name
        with pytest.raises(AttributeError, match="gram_II"):
            used.inverse_factor(0.1)


@pytest.mark.parametrize("split", [1, 2, 8])
@pytest.mark.parametrize("make", [InputStatistics, Gram])
def test_batching_and_padding_change_nothing(split, make):
    x = torch.randn(8, 30, 5) + 3
    lengths = torch.tensor([30, 1, 7, 12, 30, 0, 2, 29])
    mask = torch.arange(30) < lengths[:, None]
    padded = gathered(torch.where(mask.unsqueeze(-1), x, float("nan")), mask, split, make)
    alone = make(LAYER)
    for sequence, length in zip(x, lengths, strict=True):
        if length:
            alone.update(sequence[None, :length])
    assert (padded.sequences, padded.rows) == (7, 111)
    torch.testing.assert_close(padded.sums_3I, alone.sums_3I, rtol=1e-4, atol=1e-4)
    if make is Gram:
        torch.testing.assert_close(padded.gram_II, alone.gram_II)


def test_half_precision_inputs_accumulate_in_float32():
    x = torch.full((1, 3000, 5), 100.0, dtype=torch.float16)
    assert gathered(x).square_sum_I[0].item() == pytest.approx(3e7)


def test_bad_statistics():
    with pytest.raises(CalibrationError, match="layer 'fc' saw no calibration tokens"):
        gathered(torch.ones(1, 3, 5), torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(NonFiniteError, match="layer 'fc' hold NaN"):
        gathered(torch.full((1, 3, 5), float("nan")))


def half(folder):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    x = torch.load(f"{folder}/x.pt")[rank::2]
    torch.save(gathered(x, make=Gram).__dict__ | {"name": ""}, f"{folder}/{rank}.pt")


def test_two_processes_add_up(tmp_path):
    x = torch.randn(6, 20, 5)
    torch.save(x, tmp_path / "x.pt")
    two_processes("import sys, core.test_statistics as tests; tests.half(sys.argv[1])", tmp_path, tmp_path)
    whole = gathered(x, make=Gram)
    for rank in (0, 1):
        part = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(part["sums_3I"], whole.sums_3I)
        torch.testing.assert_close(part["gram_II"], whole.gram_II)
        assert torch.equal(part["counts"], whole.counts)
