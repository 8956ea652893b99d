import copy
import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional

from models import write_tiny_llama
from weightsmith.analyze import alignment, alignment_map, barrier_curve, distance, loss_slice, mode_connectivity
from weightsmith.analyze._mode_connectivity import barrier, second_order_barrier
from weightsmith.analyze._shared.alignment import input_energy, matrices_of
from weightsmith.core.errors import HyperparameterError, LayerNotFoundError, NonFiniteError, ShapeError
from weightsmith.embedded import open_model

DATA = torch.rand(64, 6, generator=torch.Generator().manual_seed(0))
CLASSES = DATA[:, :3].argmax(1)


def net(seed, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)).to(dtype)


def loss(model):
    with torch.no_grad():
        return functional.cross_entropy(model(DATA.to(next(model.parameters()).dtype)), CLASSES).item()


def shuffled(model, seed=0):
    order = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    state = model.state_dict()
    return {
        "0.weight": state["0.weight"][order],
        "0.bias": state["0.bias"][order],
        "2.weight": state["2.weight"][:, order],
        "2.bias": state["2.bias"],
    }


def test_a_network_has_no_barrier_to_itself():
    model = net(0)
    state = copy.deepcopy(model.state_dict())
    curve = barrier_curve(model, state, state, loss)
    assert len(curve.losses) == 25
    assert curve.barrier == pytest.approx(0, abs=1e-6)


def test_the_barrier_does_not_care_for_the_direction():
    model, a, b = net(0), net(0).state_dict(), net(1).state_dict()
    there, back = barrier_curve(model, a, b, loss), barrier_curve(model, b, a, loss)
    assert there.losses == pytest.approx(back.losses[::-1], rel=1e-5)
    assert there.barrier == pytest.approx(back.barrier, abs=1e-6)
    assert all(tensor.equal(a[key]) for key, tensor in model.state_dict().items())


def test_barriers_by_hand():
    assert barrier([0.0, 3.0, 2.0, 3.0]) == 2.0
    assert barrier([0.0, 1.0, 1.0], alphas=[0.0, 0.9, 1.0]) == pytest.approx(0.1)
    with pytest.raises(HyperparameterError, match="losses along a line"):
        barrier([1.0, 2.0])
    with pytest.raises(HyperparameterError, match="from 0 to 1"):
        barrier([1.0, 2.0, 3.0], [0.0, 0.5, 0.9])
    with pytest.raises(HyperparameterError, match="ascending"):
        barrier([1.0, 2.0, 2.0, 3.0], [0.0, 1.5, 0.5, 1.0])


def test_losses_that_are_not_finite():
    model = net(0)
    with pytest.raises(NonFiniteError, match="end 0 of the line"):
        barrier_curve(model, model.state_dict(), model.state_dict(), lambda _: math.nan)


def test_a_loss_between_the_ends_that_is_not_a_number_is_not_left_out():
    model = nn.Linear(1, 1, bias=False)
    ends = [{"weight": torch.tensor([[w]])} for w in (-1.0, 1.0)]

    def measure(model):
        size = abs(model.weight.item())
        return math.nan if size < 0.1 else 1 - size

    assert math.isnan(barrier_curve(model, *ends, measure).barrier)
    assert barrier([0.0, math.inf, 0.0]) == math.inf


def test_weights_of_other_shapes_or_names_have_no_distance():
    start = {"w": torch.ones(3)}
    for end in ({"w": torch.zeros(1)}, {}):
        with pytest.raises(ShapeError, match="'w' of the second weights"):
            distance(start, end)
    corners = ({"weight": torch.zeros(1, 1)}, {"weight": torch.ones(1, 1)}, {})
    with pytest.raises(ShapeError, match="found none"):
        loss_slice(nn.Linear(1, 1, bias=False), corners, lambda model: 0.0)


def test_batch_normalisation_needs_data():
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
    for model in (a, b):
        model.train()
        for _ in range(30):
            model(DATA)
    ends = a.state_dict(), copy.deepcopy(b.state_dict())
    with pytest.warns(UserWarning, match="running statistics do not fit"):
        plain = barrier_curve(a, *ends, loss, alphas=(0, 0.5, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mended = barrier_curve(a, *ends, loss, alphas=(0, 0.5, 1), calibration=[DATA])
    assert plain.losses[0] == mended.losses[0]
    assert plain.losses[2] == mended.losses[2]
    middle = copy.deepcopy(a)
    for parameter, x, y in zip(middle.parameters(), a.parameters(), b.parameters(), strict=True):
        parameter.data = (x.data + y.data) / 2
    middle.train()
    middle[1].momentum = None
    middle[1].reset_running_stats()
    middle(DATA)
    assert mended.losses[1] == pytest.approx(loss(middle.eval()), rel=1e-4)
    assert mended.losses[1] != plain.losses[1]
    corners = *ends, {key: 2 * tensor for key, tensor in ends[1].items()}
    with pytest.warns(UserWarning, match="running statistics do not fit"):
        wrong = loss_slice(a, corners, loss, steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = loss_slice(a, corners, loss, steps=2, calibration=[DATA])
    assert not torch.allclose(wrong.losses, right.losses)


# --- alignment


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 1.0])
def test_a_network_is_aligned_with_itself_and_with_its_shuffled_self_put_in_order(gamma):
    model = net(0, torch.float64)
    state = model.state_dict()
    assert alignment(state, state, gamma=gamma).value == pytest.approx(1, abs=1e-12)
    moved = shuffled(model)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).argsort()
    back = moved | {"0.weight": moved["0.weight"][order], "2.weight": moved["2.weight"][:, order]}
    assert alignment(state, back, gamma=gamma).value == pytest.approx(1, abs=1e-12)
    if gamma < 0.9:
        assert alignment(state, moved, gamma=gamma).value < 0.6


def test_random_networks_are_not_aligned():
    generator = torch.Generator().manual_seed(0)
    a, b = ({"w": torch.randn(256, 256, generator=generator)} for _ in range(2))
    for gamma in (0.0, 0.3):
        assert abs(alignment(a, b, gamma=gamma).value) < 0.05


def test_permutations_keep_singular_values():
    model = net(0, torch.float64)
    moved = shuffled(model)
    for key in ("0.weight", "2.weight"):
        torch.testing.assert_close(
            torch.linalg.svdvals(moved[key]), torch.linalg.svdvals(model.state_dict()[key]), rtol=1e-12, atol=1e-12
        )


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), rows=st.integers(2, 9), columns=st.integers(2, 9))
def test_the_double_sum_over_directions_is_the_inner_product(seed, rows, columns):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(2))
    s_a, s_b = torch.linalg.svdvals(a), torch.linalg.svdvals(b)
    table = alignment_map(a, b) * s_a[:, None] * s_b
    torch.testing.assert_close(table.sum(), (a * b).sum(), rtol=1e-12, atol=1e-12)
    order = torch.randperm(rows, generator=generator)
    norms = a.square().sum() + b.square().sum()
    torch.testing.assert_close((a - b[order]).square().sum(), norms - 2 * (a * b[order]).sum())
    # the fast form of R is the double sum over the kept directions
    kept = min(rows, columns)
    fast = alignment({"w": a}, {"w": b}, gamma=0.0).value
    assert fast == pytest.approx(float(alignment_map(a, b).sum()) / kept, abs=1e-12)
    assert abs(alignment({"w": a}, {"w": b}, gamma=0.6).value) <= 1 + 1e-12


def test_layers_count_by_their_directions_and_convolutions_are_unfolded():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 4))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.neg_()
    matrices = matrices_of(model)
    assert matrices["0.weight"](model[0].weight).shape == (8, 27)
    found = alignment(model.state_dict(), other.state_dict(), matrices, gamma=0.0)
    assert found.layers == pytest.approx({"0.weight": -1.0, "2.weight": 1.0})
    assert found.kept == {"0.weight": (8, 8), "2.weight": (4, 4)}
    assert found.value == pytest.approx((4 - 8) / 12)
    assert list(matrices_of(model, exclude="2")) == ["0.weight"]


def test_bad_alignments_are_refused():
    weights = {"w": torch.eye(3)}
    with pytest.raises(HyperparameterError, match="gamma"):
        alignment(weights, weights, gamma=1.5)
    with pytest.raises(ShapeError, match="'w'"):
        alignment(weights, {"w": torch.eye(4)})
    with pytest.raises(LayerNotFoundError):
        alignment({"b": torch.zeros(3)}, {"b": torch.zeros(3)})
    with pytest.raises(ShapeError):
        alignment_map(torch.eye(3), torch.eye(4))


def test_the_energy_of_the_input_along_large_directions():
    model = net(0)
    shares = input_energy(model, [DATA[:40], DATA[40:]], gamma=0.5)
    _, s, v = torch.linalg.svd(model[2].weight.double(), full_matrices=False)
    hidden = torch.tanh(model[0](DATA)).double()
    kept = v[s >= 0.5 * s[0]]
    assert shares["2"] == pytest.approx(((hidden @ kept.T).square().sum() / hidden.square().sum()).item(), rel=1e-5)
    assert input_energy(model, [DATA], gamma=0.0)["0"] == pytest.approx(1, rel=1e-5)  # six directions of six inputs
    with pytest.raises(HyperparameterError, match="gamma"):
        input_energy(model, [DATA], gamma=-0.1)


# --- planes and curvature


def test_a_slice_holds_its_corners_and_the_line_between_them():
    model = net(0, torch.float64)
    corners = tuple(copy.deepcopy(net(seed, torch.float64).state_dict()) for seed in range(3))
    plane = loss_slice(model, corners, loss, steps=3, margin=0.0)
    (ax, ay), (_, by), (cx, cy) = plane.points
    assert (ax, ay, by) == (0, 0, 0)
    for i, j in itertools.combinations(range(3), 2):
        (x0, y0), (x1, y1) = plane.points[i], plane.points[j]
        assert math.hypot(x1 - x0, y1 - y0) == pytest.approx(distance(corners[i], corners[j]), rel=1e-9)
    assert plane.x[0] == min(0, cx)
    assert plane.y[-1] == pytest.approx(cy)
    if cx >= 0:
        assert plane.losses[0, 0].item() == pytest.approx(barrier_curve(model, *corners[:2], loss).losses[0], rel=1e-6)
    assert all(tensor.equal(corners[0][key]) for key, tensor in model.state_dict().items())
    with pytest.raises(HyperparameterError, match="span a plane"):
        loss_slice(model, (corners[0], corners[1], corners[1]), loss)
    with pytest.raises(HyperparameterError, match="steps"):
        loss_slice(model, corners, loss, steps=1)


def test_the_second_order_prediction_is_exact_for_a_quadratic():
    torch.manual_seed(0)
    model = nn.Linear(4, 2).double()
    ends = [copy.deepcopy(nn.Linear(4, 2).double().state_dict()) for _ in range(2)]
    x, y = torch.randn(32, 4).double(), torch.randn(32, 2).double()

    def squares(m):
        return (m(x) - y).square().mean()

    curve = barrier_curve(model, *ends, lambda m: squares(m).item(), alphas=(0.0, 0.5, 1.0))
    assert second_order_barrier(model, *ends, squares) == pytest.approx(curve.barrier, rel=1e-9)


def test_the_second_order_prediction_of_a_short_line_is_near():
    model = net(0, torch.float64)
    start = copy.deepcopy(model.state_dict())
    end = {key: tensor + 0.01 * torch.randn(tensor.shape, dtype=tensor.dtype) for key, tensor in start.items()}
    x = DATA.double()
    predicted = second_order_barrier(model, start, end, lambda m: functional.cross_entropy(m(x), CLASSES))
    curve = barrier_curve(model, start, end, loss, alphas=(0.0, 0.5, 1.0))
    assert predicted == pytest.approx(curve.barrier, rel=0.05)


def test_the_command_compares_two_folders(tmp_path):
    write_tiny_llama(tmp_path, 2, 8)
    (tmp_path / "tiny").rename(tmp_path / "a")
    write_tiny_llama(tmp_path, 2, 8)
    result = mode_connectivity(str(tmp_path / "a"), other=str(tmp_path / "tiny"))
    assert result.totals["distance"] == 0
    assert result.totals["alignment"] == pytest.approx(1)
    assert all(row["spectrum_difference"] == 0 for row in result.layers)
    model = open_model(tmp_path / "a").model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    doubled = mode_connectivity(model, other=str(tmp_path / "tiny"))
    assert all(row["distance"] == pytest.approx(0.5) for row in doubled.layers)
    assert doubled.totals["alignment"] == pytest.approx(1)
    with pytest.raises(ShapeError, match="in one model only"):
        mode_connectivity(net(0), other=str(tmp_path / "tiny"))
