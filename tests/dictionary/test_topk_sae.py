"""Training of TopK sparse autoencoders."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from models import write_tiny_llama
from weightsmith.analyze import TopKSAE, load_sae
from weightsmith.cli.main import app
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.dictionary import topk_sae, train_sae


def sparse_rows(count=800, atoms=12, width=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(atoms, width, generator=draw), dim=1)
    codes = torch.rand(count, atoms, generator=draw) + 0.5
    active = torch.rand(count, atoms, generator=draw).topk(2, dim=1).indices
    codes = codes * torch.zeros_like(codes).scatter(1, active, 1.0)
    return codes @ vectors, vectors


def explained(sae, rows):
    with torch.no_grad():
        return 1 - float((sae(rows) - rows).square().sum() / (rows - rows.mean(0)).square().sum())


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_atoms_of_sparse_rows_are_found_at_any_scale(scale):
    rows, vectors = sparse_rows()
    sae = TopKSAE(16, 24, k=2)
    train_sae(sae, scale * rows, epochs=150, batch_size=64, learning_rate=3e-3)
    assert explained(sae, scale * rows) > 0.8
    with torch.no_grad():
        found = torch.nn.functional.normalize(sae.W_dec, dim=1)
    assert (found @ vectors.T).max(0).values.median() > 0.9


def test_the_scale_does_not_matter():
    rows, _ = sparse_rows()
    one, other = TopKSAE(16, 24, k=2), TopKSAE(16, 24, k=2)
    for sae, scale in ((one, 1.0), (other, 4.0)):  # a power of two: no rounding
        train_sae(sae, scale * rows, epochs=3, batch_size=64)
    with torch.no_grad():
        torch.testing.assert_close(other(4 * rows) / 4, one(rows))


def test_every_checkpoint_works_alone():
    """The trap: an autoencoder that is saved in the middle of training has its scale folded, too."""
    rows, _ = sparse_rows()
    rows = 50 * rows + 20
    saved = {}
    sae = TopKSAE(16, 24, k=2)
    run = train_sae(
        sae, rows, epochs=60, batch_size=80, checkpoints=3, checkpoint=saved.__setitem__, learning_rate=3e-3
    )
    assert run.steps == 600
    assert list(saved) == [150, 300, 450]
    scores = [explained(each, rows) for each in (*saved.values(), sae)]
    assert min(scores) > 0.4
    assert scores[0] < scores[-1]


def test_the_same_seed_trains_the_same_bits():
    rows, _ = sparse_rows()
    first, same, other = TopKSAE(16, 24, k=2), TopKSAE(16, 24, k=2), TopKSAE(16, 24, k=2)
    for sae, seed in ((first, 0), (same, 0), (other, 1)):
        train_sae(sae, rows, epochs=2, seed=seed)
    assert torch.equal(first.W_dec, same.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)


def test_bad_input():
    rows, _ = sparse_rows()
    with pytest.raises(HyperparameterError, match="k: found 25, expected from 1 to the 24 features"):
        TopKSAE(16, 24, k=25)
    sae = TopKSAE(16, 24, k=2)
    before = sae.W_dec.clone()
    with pytest.raises(NonFiniteError, match="activations"):
        train_sae(sae, rows * math.nan)
    with pytest.raises(CalibrationError, match="all equal"):
        train_sae(sae, torch.ones(5, 16))
    with pytest.raises(HyperparameterError, match="epochs"):
        train_sae(sae, rows, epochs=0)
    with pytest.raises(ShapeError, match="features of the activations: found 15, expected 16"):
        train_sae(sae, rows[:, :15])
    for checkpoints in (5, -1):
        with pytest.raises(HyperparameterError, match="checkpoints: found -?[51], expected from 0 to 4"):
            train_sae(sae, rows, epochs=5, batch_size=len(rows), checkpoints=checkpoints)
    assert torch.equal(sae.W_dec, before)


@pytest.mark.parametrize(("checkpoints", "steps"), [(1, [5]), (3, [2, 5, 8]), (7, [1, 2, 4, 5, 6, 8, 9])])
def test_as_many_checkpoints_as_asked_for_are_evenly_spaced(checkpoints, steps):
    rows, _ = sparse_rows()
    seen = []
    train_sae(
        TopKSAE(16, 24, k=2),
        rows,
        epochs=11,
        batch_size=len(rows),
        checkpoints=checkpoints,
        checkpoint=lambda step, _: seen.append(step),
    )
    assert seen == steps


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_activations_of_other_precisions_are_taken(dtype):
    rows, _ = sparse_rows()
    rows = rows.bfloat16()
    sae, same = TopKSAE(16, 24, k=2), TopKSAE(16, 24, k=2)
    losses = [train_sae(each, given, epochs=2).losses for each, given in ((sae, rows.to(dtype)), (same, rows.float()))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models"), 16, 12)


def test_the_command_trains_on_text(folder, tmp_path):
    out = tmp_path / "sae"
    line = ["dictionary", "topk-sae", str(folder / "tiny"), str(out), "--training", str(folder / "inputs.safetensors")]
    line += ["--site", "1.resid@end", "--features", "24", "--k", "3", "--epochs", "20", "--checkpoints", "1"]
    done = CliRunner().invoke(app, [*line, "--json", str(tmp_path / "r.json"), "--learning-rate", "0.003"])
    assert done.exit_code == 0, done.output
    sae = load_sae(out)
    assert (sae.d_in, sae.d_sae, sae.k) == (16, 24, 3)
    assert json.loads((out / "cfg.json").read_text())["metadata"]["hook_name"] == "1.resid@end"
    (halfway,) = out.glob("step-*")
    assert load_sae(halfway).k == 3
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["layers"][0]["variance_explained"] > 0.3
    assert record["curves"]["training loss"]


def test_a_failed_run_writes_nothing(folder, tmp_path):
    options = {"training": [{"input_ids": torch.arange(9)}], "site": "1.resid@end"}
    with pytest.raises(HyperparameterError, match="k"):
        topk_sae(folder / "tiny", tmp_path / "sae", k=99, features=8, **options)
    with pytest.raises(HyperparameterError, match="9 blocks|2 blocks"):
        topk_sae(folder / "tiny", tmp_path / "sae", **{**options, "site": "7.resid@end"})
    with pytest.raises(CalibrationError, match="no tokenizer"):
        topk_sae(folder / "tiny", tmp_path / "sae")
    assert not (tmp_path / "sae").exists()
