"""Classwise forgetting: what changes, what is measured, what is refused."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from weightsmith.claims.modhifi import accuracy, digits_mlp
from weightsmith.cli.main import app
from weightsmith.core.errors import CalibrationError, HyperparameterError, NonFiniteError, UnsupportedModelError
from weightsmith.forget import classwise
from weightsmith.testing import samples, tiny


@pytest.fixture(scope="module")
def digits():
    model, _, (x, y) = digits_mlp(0)
    return model, list(zip(x, y, strict=True)), x, y


def test_one_class_is_forgotten_and_the_others_stay(digits):
    trained, data, x, y = digits
    model = copy.deepcopy(trained)
    result = classwise(model, data, class_name="7")
    assert accuracy(model, x[y == 7], y[y == 7]) <= 0.1
    assert accuracy(model, x[y != 7], y[y != 7]) >= 0.85
    assert result.before["accuracy_forgotten"] > 0.9 > 0.1 >= result.after["accuracy_forgotten"]
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, trained.state_dict()[name])]
    assert changed == [f"{row['layer']}.weight" for row in result.layers]


def test_the_pairs_of_highest_saliency_become_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False))
    x = torch.randn(40, 3)
    data = [(row, torch.tensor(n % 4)) for n, row in enumerate(x)]
    own = x[0::4][::2]  # the half of the class's samples that finds the weights
    weight = model[0].weight.detach().clone()
    saliency = weight * (weight @ (own.T @ own / len(own)))
    result = classwise(model, data, class_name="0", fraction=0.25, layers=1)
    expected = weight.flatten().index_fill(0, saliency.flatten().topk(3).indices, 0.0).view(4, 3)
    assert torch.equal(model[0].weight, expected)
    assert result.layers == [{"layer": "0", "pairs": 3, "changed": 0.25}]


def test_a_pair_of_a_convolution_is_a_kernel():
    model, _ = tiny("cnn")
    before = model[3].weight.detach().clone()
    classwise(model, samples("cnn", 40), class_name="2", fraction=0.25, layers=1, include="3")
    zero = (model[3].weight == 0).flatten(2)
    assert (zero.all(-1) == zero.any(-1)).all()
    assert int(zero.all(-1).sum()) == 16
    kept = ~zero.all(-1)
    assert torch.equal(model[3].weight[kept], before[kept])


def test_networks_with_layer_norm_change_the_sign():
    model, before = tiny("vit")[0], tiny("vit")[0]
    result = classwise(model, samples("vit"), class_name="LABEL_1", fraction=0.1, layers=2)
    assert result.hyper["mode"] == "negate"
    for row in result.layers:
        new, old = (m.get_submodule(row["layer"]).weight for m in (model, before))
        assert torch.equal(new.abs(), old.abs())
        assert int((new != old).sum()) == row["pairs"]
    with pytest.warns(UserWarning, match="negate"):
        classwise(before, samples("vit"), class_name="1", fraction=0.1, layers=1, mode="zero")


def test_the_damage_to_every_class_is_shown(digits):
    trained, data, *_ = digits
    result = classwise(copy.deepcopy(trained), data, class_name="3", fraction=0.2, layers=2)
    for label in (0, 1, 2, 4, 5, 6, 7, 8, 9):
        assert {f"accuracy of {label}", "accuracy_others"} <= result.before.keys() & result.after.keys()
    assert result.after["accuracy_others"] < result.before["accuracy_others"]
    assert "loses most" in " ".join(result.notes)


def test_no_class_is_named_where_none_loses():
    torch.manual_seed(0)
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    data = [(torch.tensor([1.0, 0.1] if n % 2 else [0.1, 1.0]), torch.tensor(n % 2)) for n in range(24)]
    result = classwise(model, data, class_name="1", fraction=0.25, layers=1)
    assert result.after["accuracy_others"] == 1.0
    assert "No other class is recognized less often than before." in result.notes
    assert "loses most" not in " ".join(result.notes)


def test_too_little_is_no_success(digits):
    trained, data, *_ = digits
    result = classwise(copy.deepcopy(trained), data, class_name="3", fraction=1e-6, layers=1)
    assert "is not forgotten" in " ".join(result.notes)


def test_samples_of_the_class_alone_are_enough_and_it_is_said(digits):
    trained, data, *_ = digits
    alone, both = copy.deepcopy(trained), copy.deepcopy(trained)
    result = classwise(alone, [each for each in data if each[1] == 5], class_name="5")
    classwise(both, data, class_name="5")
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), both.state_dict().values(), strict=True))
    assert "not measured" in " ".join(result.notes)


def test_an_empty_class_is_refused(digits):
    trained, data, *_ = digits
    with pytest.raises(CalibrationError, match="no samples of class '4'"):
        classwise(trained, [each for each in data if each[1] != 4], class_name="4")
    with pytest.raises(CalibrationError):
        classwise(trained, [], class_name="4")


def test_unknown_classes_are_refused(digits):
    trained, data, *_ = digits
    with pytest.raises(HyperparameterError, match="class_name"):
        classwise(trained, data, class_name="seven")
    with pytest.raises(HyperparameterError, match="LABEL_0"):
        classwise(tiny("vit")[0], samples("vit"), class_name="cat")
    with pytest.raises(UnsupportedModelError, match="no classifier"):
        classwise(trained, [(data[0][0], torch.tensor(12))], class_name="12")


@pytest.mark.parametrize(
    ("option", "value"),
    [("fraction", 0.0), ("fraction", 1.5), ("layers", 0), ("layers", 9), ("batch_size", 0)],
    ids=str,
)
def test_options_out_of_range(digits, option, value):
    trained, data, *_ = digits
    with pytest.raises(HyperparameterError, match=option):
        classwise(copy.deepcopy(trained), data, class_name="1", **{option: value})


def test_labels_of_tokens_are_refused():
    with pytest.raises(CalibrationError, match="one class per sample"):
        classwise(tiny("llama")[0], samples("llama"), class_name="1")


def test_a_class_may_be_written_as_a_number():
    model, data = nn.Linear(4, 2), [(torch.randn(4), torch.tensor(n % 2)) for n in range(8)]
    found = inspect.unwrap(classwise)(model, data, class_name=1, fraction=0.2, layers=1)
    assert found.hyper["class_name"] == "1"
    assert "accuracy of 0" in found.before


def test_samples_without_a_class_do_not_count_and_real_labels_are_refused():
    model, data = nn.Linear(4, 2), [(torch.randn(4), torch.tensor(n % 2)) for n in range(8)]
    ignored = [(torch.randn(4), torch.tensor(-100))] * 3
    options = {"class_name": "1", "fraction": 0.2, "layers": 1}
    before = classwise(copy.deepcopy(model), data, **options).before
    assert classwise(copy.deepcopy(model), data + ignored, **options).before == before
    with pytest.raises(CalibrationError, match="one class per sample"):
        classwise(model, [(x, torch.tensor(0.7)) for x, _ in data], **options)


def test_inputs_that_are_not_finite_are_refused_and_nothing_changes(digits):
    trained, data, *_ = digits
    model = copy.deepcopy(trained)
    broken = [(x / (label != 2), label) for x, label in data]
    with pytest.raises(NonFiniteError):
        classwise(model, broken, class_name="2")
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), trained.state_dict().values(), strict=True)
    )


def test_command_on_a_folder_of_images_per_class(tmp_path):
    from PIL import Image
    from transformers import AutoModelForImageClassification, ViTImageProcessor
    from typer.testing import CliRunner

    model, _ = tiny("vit")
    names = {0: "cat", 1: "dog", 2: "tabby cat"}
    model.classifier = nn.Linear(32, 3)
    model.config.id2label, model.config.label2id = names, {name: number for number, name in names.items()}
    model.save_pretrained(tmp_path / "model")
    side = model.config.image_size
    ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(tmp_path / "model")
    colors = torch.Generator().manual_seed(0)
    for name in names.values():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            color = tuple(torch.randint(256, (3,), generator=colors).tolist())
            Image.new("RGB", (40, 30), color).save(tmp_path / "photos" / name / f"{number}.png")
    data, out = str(tmp_path / "photos"), tmp_path / "out"
    options = ["--images", data, "--class", "tabby cat", "--fraction", "0.1", "--layers", "1"]
    outcome = CliRunner().invoke(app, ["forget", "classwise", str(tmp_path / "model"), str(out), *options])
    assert outcome.exit_code == 0, outcome.output
    assert "accuracy of dog" in outcome.output
    assert "Only 2 samples of class 'tabby cat' measure its accuracy" in " ".join(outcome.output.split())
    told = " ".join(outcome.output.split())
    assert "Layers that were not chosen stay unchanged" in told
    assert "vit.encoder" not in told  # they were reached
    again = AutoModelForImageClassification.from_pretrained(out)
    assert again.config.id2label == names
    assert not torch.equal(again.classifier.weight, model.classifier.weight)
