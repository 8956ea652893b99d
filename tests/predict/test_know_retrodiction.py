"""Retrodiction of whole networks, in memory and on disk: what is predicted, what stays, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weightsmith.core.errors import (
    CheckpointError,
    HyperparameterError,
    NonFiniteError,
    ShapeError,
    UnsupportedModelError,
)
from weightsmith.core.io import TensorSpec
from weightsmith.predict import HistoryNet, KnowPredictor, SmoothRule, Trajectory, know
from weightsmith.predict._know.controls import matched_shrink
from weightsmith.predict._know.elementwise import ElementwiseRule
from weightsmith.predict._know.routing import route

RULE = SmoothRule(drift=-0.3, smooth=0.15, size=-0.4, size_fan=-0.2, size_rms=0.1)


def net(seed: int) -> HistoryNet:
    return HistoryNet(torch.Generator().manual_seed(seed))


def elementwise(chunk: int | None = None) -> KnowPredictor:
    nets = {kind: net(seed) for seed, kind in enumerate(("conv", "fc", "bias"))}
    return KnowPredictor("test", {kind: ElementwiseRule(n, chunk) for kind, n in nets.items()})


PREDICTORS = {"elementwise": elementwise(), "smooth": KnowPredictor("test", {"conv": RULE})}


class Net(nn.Module):
    """Every kind of tensor that must or must not be predicted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.point = nn.Conv2d(6, 4, 1, bias=False)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.line = nn.Conv1d(4, 4, 5)
        self.norm = nn.BatchNorm2d(6)
        self.layer_norm = nn.LayerNorm(4)
        self.embed_tokens = nn.Embedding(9, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.fc = nn.Linear(4, 5)
        self.tied = nn.Linear(4, 5, bias=False)
        self.tied.weight = self.fc.weight


PREDICTED = {"conv.weight", "conv.bias", "depthwise.weight", "point.weight", "up.weight", "up.bias"} | {
    *("line.weight", "line.bias", "fc.weight", "fc.bias", "tied.weight")
}


def trajectory(dtype: torch.dtype = torch.float32, model: nn.Module | None = None) -> Trajectory:
    """Five snapshots that differ by a little noise; tied tensors stay tied."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = (model or Net()).to(dtype).state_dict()
    generator = torch.Generator().manual_seed(1)
    snapshots = []
    for stage in range(5):
        copies: dict[int, torch.Tensor] = {}
        for tensor in state.values():
            if tensor.data_ptr() not in copies:
                noise = 0.01 * (4 - stage) * torch.randn(tensor.shape, generator=generator)
                copies[tensor.data_ptr()] = tensor + noise.to(dtype) if tensor.is_floating_point() else tensor.clone()
        snapshots.append({name: copies[tensor.data_ptr()] for name, tensor in state.items()})
    return Trajectory(tuple(snapshots), (10, 20, 40, 80, 160))


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@pytest.mark.parametrize("model", [None, Net()], ids=["by name", "by module"])
def test_what_is_predicted_and_what_stays(model):
    steps = trajectory()
    predicted = elementwise().retrodict(steps, steps=1, model=model)
    assert predicted.keys() == steps[-1].keys()
    changed = {key for key in predicted if not torch.equal(predicted[key], steps[-1][key])}
    assert changed == PREDICTED
    assert predicted["norm.num_batches_tracked"].dtype == torch.int64


def test_kinds_have_their_own_predictor():
    steps = trajectory()
    predicted = elementwise().retrodict(steps, steps=1)
    for seed, key in enumerate(("depthwise.weight", "fc.weight", "conv.bias")):
        history = torch.stack([snapshot[key].flatten() for snapshot in steps], dim=1)
        expected = history[:, -1] + net(seed)(history)
        assert (predicted[key].flatten() - expected).abs().max() < 1e-6


def test_routing_by_kernel_size_sends_other_kernels_to_the_matrix_predictor():
    steps = trajectory()
    by_rank = elementwise().retrodict(steps, steps=1)
    by_size = elementwise().retrodict(steps, steps=1, routing="kernel_size")
    different = {key for key in by_rank if not torch.equal(by_rank[key], by_size[key])}
    assert different == {"point.weight", "up.weight", "line.weight"}


@pytest.mark.parametrize("name", PREDICTORS)
def test_no_steps_return_the_trained_network_bit_by_bit(name):
    steps = trajectory()
    predicted = PREDICTORS[name].retrodict(steps, steps=0)
    assert all(torch.equal(predicted[key], steps[-1][key]) for key in predicted)


@pytest.mark.parametrize("name", PREDICTORS)
def test_two_steps_are_shift_and_append(name):
    predictor, steps = PREDICTORS[name], trajectory()
    once = predictor.retrodict(steps, steps=1)
    by_hand = predictor.retrodict([*steps[1:], once], steps=1)
    twice = predictor.retrodict(steps, steps=2)
    assert all((by_hand[key] - twice[key]).abs().max() < 1e-6 for key in PREDICTED)


def test_zero_head_returns_the_trained_network_bit_by_bit():
    zero = net(0)
    nn.init.zeros_(zero.head.weight)
    steps = trajectory()
    predicted = KnowPredictor("zero", dict.fromkeys(("conv", "fc", "bias"), ElementwiseRule(zero))).retrodict(steps)
    assert all(torch.equal(predicted[key], steps[-1][key]) for key in predicted)


@pytest.mark.parametrize("name", PREDICTORS)
def test_order_of_the_history_matters(name):
    steps = list(trajectory())
    ends_swapped = [steps[3], *steps[1:3], steps[0], steps[4]]
    ahead, back = (PREDICTORS[name].retrodict(s, steps=1)["conv.weight"] for s in (steps, ends_swapped))
    assert (ahead - back).abs().max() > 1e-5


@pytest.mark.parametrize("name", PREDICTORS)
def test_permuting_channels_commutes_with_prediction(name):
    steps = trajectory()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(5))
    permuted = [{**snapshot, "conv.weight": snapshot["conv.weight"][order]} for snapshot in steps]
    expected = PREDICTORS[name].retrodict(steps)["conv.weight"][order]
    assert (PREDICTORS[name].retrodict(permuted)["conv.weight"] - expected).abs().max() < 1e-6


def test_chunk_size_changes_nothing():
    steps = trajectory()
    whole = elementwise().retrodict(steps)
    for chunk in (1, 100):
        parts = elementwise(chunk).retrodict(steps)
        assert all((whole[key] - parts[key]).abs().max() < 1e-6 for key in PREDICTED)


def test_tied_weights_are_predicted_once_and_stay_tied():
    predicted = elementwise().retrodict(trajectory())
    assert predicted["fc.weight"] is predicted["tied.weight"]


@pytest.mark.parametrize("name", PREDICTORS)
def test_the_trajectory_itself_does_not_change(name):
    steps, untouched = trajectory(), trajectory()
    PREDICTORS[name].retrodict(steps)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(steps, untouched, strict=True) for key in a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", PREDICTORS)
def test_other_types_are_computed_in_float32_and_come_back(name, dtype):
    steps = trajectory(dtype)
    predicted = PREDICTORS[name].retrodict(steps)
    full = PREDICTORS[name].retrodict(
        [{k: v.float() if v.is_floating_point() else v for k, v in snapshot.items()} for snapshot in steps]
    )
    for key in PREDICTED:
        assert predicted[key].dtype == dtype
        assert torch.equal(predicted[key], full[key].to(dtype))


class TestSmoothRule:
    def test_is_the_equation(self):
        generator = torch.Generator().manual_seed(0)
        history = torch.randn(5, 4, 3, 3, 3, generator=generator)
        u0, u4 = (w / w.square().mean().sqrt() for w in (history[0], history[4]))
        blur = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]).expand(1, 1, 3, 3)
        blurred = nn.functional.conv2d(u4.reshape(-1, 1, 3, 3), blur, padding=1).view_as(u4)
        d = u4 + RULE.drift * (u4 - u0) + RULE.smooth * blurred
        rms, fan = history[4].square().mean().sqrt(), torch.tensor(27.0)
        size = RULE.size + RULE.size_fan * (fan / 100).log() + RULE.size_rms * (rms * fan.sqrt()).log()
        expected = d / d.square().mean().sqrt() * rms * size.exp()
        assert (RULE(list(history.clone()), 1) - expected).abs().max() < 1e-5

    def test_sign_and_scale_equivariance(self):
        history = torch.randn(5, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        base = RULE(list(history.clone()), 3)
        assert torch.equal(RULE(list(-history), 3), -base)
        scaled = RULE(list(7 * history), 3)
        assert (scaled / scaled.norm() - base / base.norm()).abs().max() < 1e-6

    def test_large_kernels_are_cut_into_blocks_without_a_seam(self, monkeypatch):
        history = torch.randn(5, 9, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        whole = RULE(list(history.clone()), 2)
        monkeypatch.setattr("weightsmith.predict._know.smooth.CHUNK", 2 * 27)
        assert torch.allclose(RULE(list(history.clone()), 2), whole, atol=1e-6)

    def test_the_last_row_stays_however_many_steps(self):
        history = torch.randn(5, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        rows = list(history.clone())
        for _ in range(7):
            rows = [*rows[1:], RULE([row.clone() for row in rows], 1)]
        worked_on = history.clone()
        assert torch.allclose(RULE(list(worked_on), 7), rows[-1], atol=1e-6)
        assert torch.equal(worked_on[-1], history[-1])

    def test_a_kernel_of_zeros_stays(self):
        assert not RULE(list(torch.zeros(5, 2, 2, 3, 3)), 3).any()

    def test_beyond_the_meta_trained_fan_in_the_size_is_that_of_the_end(self):
        def ratio(channels):
            history = torch.full((5, 1, channels, 1, 1), channels**-0.5)
            flat = SmoothRule(0.0, 0.0, RULE.size, RULE.size_fan, 0.0)
            return (flat(list(history.clone()), 1).norm() / history[-1].norm()).item()

        assert ratio(4096) == pytest.approx(ratio(576), rel=1e-5) != pytest.approx(ratio(64), rel=1e-2)


class TestRefused:
    @pytest.mark.parametrize("count", [0, 1, 4, 6])
    def test_wrong_number_of_snapshots(self, count):
        with pytest.raises(HyperparameterError, match=f"predictor expects 5 stages, got {count}"):
            elementwise().retrodict([trajectory()[-1]] * count)

    def test_negative_steps_and_unknown_routing(self):
        with pytest.raises(HyperparameterError, match="steps"):
            elementwise().retrodict(trajectory(), steps=-1)
        with pytest.raises(HyperparameterError, match="predictor"):
            KnowPredictor.from_pretrained("theirs")

    @pytest.mark.parametrize("stage", [0, 3])
    @pytest.mark.parametrize("kind", ["missing", "extra", "shape", "dtype"])
    def test_snapshots_that_differ(self, stage, kind):
        steps = [dict(snapshot) for snapshot in trajectory()]
        if kind == "missing":
            del steps[stage]["conv.weight"]
        elif kind == "extra":
            steps[stage]["conv.extra"] = torch.zeros(1)
        elif kind == "shape":
            steps[stage]["conv.weight"] = torch.zeros(6, 3, 5, 5)
        else:
            steps[stage]["conv.weight"] = steps[stage]["conv.weight"].double()
        with pytest.raises(ShapeError, match=r"'conv\.(weight|extra)'"):
            elementwise().retrodict(steps)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("stage", [0, 4])
    @pytest.mark.parametrize("key", ["fc.bias", "norm.running_var"])
    def test_numbers_that_are_none(self, value, stage, key):
        steps = [{k: v.clone() for k, v in snapshot.items()} for snapshot in trajectory()]
        steps[stage][key][2] = value
        if key == "norm.running_var" and stage == 0:
            elementwise().retrodict(steps)  # only the trained network's statistics are used
            return
        with pytest.raises(NonFiniteError, match=f"'{key}' of snapshot {stage + 1}"):
            elementwise().retrodict(steps)

    def test_parametrised_and_quantised_networks(self):
        model = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 1, 3))
        with pytest.raises(UnsupportedModelError, match="parametrized"):
            elementwise().retrodict([model.state_dict()] * 5)
        with pytest.raises(UnsupportedModelError, match="quantized"):
            elementwise().retrodict([{"fc.weight": torch.zeros(2, 2, dtype=torch.int8)}] * 5)


class TestNotes:
    def notes(self, steps, predictor=None):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (predictor or elementwise()).retrodict(steps, steps=1)
        return " | ".join(str(warning.message) for warning in caught)

    def test_identical_snapshots(self):
        last = trajectory()[-1]
        assert "nothing was forgotten" in self.notes([last] * 5)
        predicted = elementwise().retrodict([last] * 5)
        assert all(torch.equal(predicted[key], last[key]) for key in last)

    def test_frozen_parameters_stay_unless_asked(self):
        steps = trajectory()
        frozen = [{**snapshot, "conv.weight": steps[-1]["conv.weight"]} for snapshot in steps]
        assert "1 frozen tensors" in self.notes(frozen)
        kept = elementwise().retrodict(frozen)["conv.weight"]
        asked = elementwise().retrodict(frozen, predict_frozen=True)["conv.weight"]
        assert torch.equal(kept, steps[-1]["conv.weight"])
        assert not torch.equal(asked, kept)

    def test_no_normalisation_and_no_convolution(self):
        text = self.notes(trajectory(model=nn.Linear(3, 3)))
        assert "no normalization layers" in text
        assert "no convolutions" in text

    def test_weights_outside_the_range(self):
        steps = [{k: 10 * v if v.is_floating_point() else v for k, v in s.items()} for s in trajectory()]
        assert "outside [-1, 1]" in self.notes(steps)

    def test_strong_shrinkage(self):
        tiny = SmoothRule(drift=0.0, smooth=0.0, size=-2.0, size_fan=0.0, size_rms=0.0)
        assert "matched_shrink" in self.notes(trajectory(), KnowPredictor("tiny", {"conv": tiny}))

    def test_nothing_to_predict(self):
        steps = trajectory(model=nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
        assert "unchanged" in self.notes(steps, PREDICTORS["smooth"])


class Scaled(nn.Module):
    """A normalization of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4), Scaled()])
def test_normalization_is_kept_with_and_without_the_model(norm):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm)
    specs = {name: TensorSpec.of(tensor) for name, tensor in model.state_dict().items()}
    assert [*route(specs)] == [*route(specs, model=model)] == ["0.weight", "0.bias"]


def test_shrinking_to_a_network_of_other_shapes_is_refused():
    with pytest.raises(ShapeError, match=r"'w' of the predicted network: found \(3,\), expected \(2,\)"):
        matched_shrink({"w": torch.ones(2)}, {"w": torch.ones(3)})


@pytest.mark.parametrize("name", ["ours", "paper"])
class TestOnDisk:
    @pytest.fixture
    def stages(self, tmp_path):
        return trajectory().save(tmp_path / "stages")

    def test_equals_in_memory(self, tmp_path, stages, name):
        result = know(stages, tmp_path / "out", predictor=name)
        written = load_file(tmp_path / "out" / "model.safetensors")
        steps = [{k: v for k, v in snapshot.items() if k != "tied.weight"} for snapshot in trajectory()]
        expected = KnowPredictor.from_pretrained(name).retrodict(steps)
        assert written.keys() == expected.keys()
        assert all(torch.equal(written[key], expected[key]) for key in expected)
        rows = {row["layer"]: row for row in result.layers}
        changed = {key for key in expected if not torch.equal(expected[key], steps[-1][key])}
        assert rows.keys() == changed
        old, new = steps[-1]["conv.weight"], expected["conv.weight"]
        assert rows["conv.weight"]["norm_ratio"] == pytest.approx((new.norm() / old.norm()).item(), rel=1e-5)
        cosine = nn.functional.cosine_similarity(old.flatten(), new.flatten(), dim=0)
        assert rows["conv.weight"]["cosine"] == pytest.approx(cosine.item(), abs=1e-5)
        assert result.totals["predicted_tensors"] == len(changed)
        assert json.loads(result.to_json())["hyper"]["steps"] == 3

    def test_wrong_order_is_refused_and_nothing_written(self, tmp_path, stages, name):
        with pytest.raises(HyperparameterError, match="smallest training set first"):
            know(stages[::-1], tmp_path / "out", predictor=name)
        assert not (tmp_path / "out").exists()

    def test_a_bad_snapshot_leaves_nothing_behind(self, tmp_path, stages, name):
        broken = load_file(stages[1])
        broken["up.weight"][0, 0, 0, 0] = float("nan")
        save_file(broken, stages[1])
        with pytest.raises(NonFiniteError, match=r"'up\.weight' of snapshot 2"):
            know(stages, tmp_path / "out", predictor=name)
        stages[0].write_bytes(stages[0].read_bytes()[:-8])
        with pytest.raises(CheckpointError, match="truncated"):
            know(stages, tmp_path / "out", predictor=name)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["stages"]


MEASURE = """
import sys, torch
from pathlib import Path
from weightsmith.predict import know

def peak():
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

torch.set_num_threads(1)
stages, small, outs = ([Path(path) for path in sys.argv[i:j]] for i, j in ((2, 7), (7, 12), (12, 14)))
know(small, outs[0], predictor=sys.argv[1])
before = peak()
know(stages, outs[1], predictor=sys.argv[1])
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux' /proc")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours", "paper"])
def test_memory_is_below_six_times_the_largest_tensor(tmp_path, name):
    channels = 1100
    paths = []
    for width in (8, channels):
        for stage in range(5):
            generator = torch.Generator().manual_seed(stage)
            kernels = {f"{i}.weight": torch.randn(width, width, 3, 3, generator=generator) / 50 for i in range(3)}
            paths.append(tmp_path / f"{width}-{stage}.safetensors")
            save_file({**kernels, "norm.weight": torch.ones(width)}, paths[-1])
    arguments = [name, *paths[5:], *paths[:5], tmp_path / "small", tmp_path / "large"]
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    largest = channels * channels * 9 * 4
    assert 4 * largest < int(run.stdout) < 6 * largest
