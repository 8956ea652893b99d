"""The classifier: what each stage may change, what it predicts, and what it saves."""

import copy
import inspect
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from weightsmith.core.errors import CheckpointError, NonFiniteError
from weightsmith_kitchen.errors import ModelError, PhotoError
from weightsmith_kitchen.photos.backbones import FoodNetwork, open_backbone, stages_of
from weightsmith_kitchen.photos.boxes import Box
from weightsmith_kitchen.photos.calibration import abstain_threshold, fit_temperature
from weightsmith_kitchen.photos.classifier import FoodClassifier
from weightsmith_kitchen.photos.finetune import parameter_groups, polynomial
from weightsmith_kitchen.photos.folder import Example, FoodPhotos
from weightsmith_kitchen.photos.preprocess import Preprocess
from weightsmith_kitchen.photos.probe import fit_probe
from weightsmith_kitchen.photos.results import topk_accuracy

COLORS = {"tomato": (200, 40, 30), "spinach": (40, 140, 50), "egg": (235, 225, 200)}
SMALL = Preprocess(side=32)


class Tiny(nn.Module):
    """Two blocks with normalization, features of 8 channels at 4 x 4."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(self.block(a, b) for a, b in ((3, 6), (6, 8))))
        self.pool = nn.AdaptiveAvgPool2d(2)

    @staticmethod
    def block(inputs, outputs):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x):
        return self.pool(self.blocks(x))


def photo(color, seed):
    rng = np.random.default_rng(seed)
    pixels = np.clip(np.array(color) + rng.normal(0, 25, (48, 64, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def photos(per_class=10, start=0, colors=COLORS):
    return FoodPhotos(
        [
            Example(photo(color, start + 1000 * number + n), label, name=f"{label} {start + n}", group=f"{label}{n}")
            for number, (label, color) in enumerate(colors.items())
            for n in range(per_class)
        ]
    )


def tiny(seed=0):
    torch.manual_seed(seed)
    return Tiny().eval()


@pytest.fixture(scope="module")
def trained():
    classifier = FoodClassifier(backbone=tiny(), preprocess=SMALL)
    classifier.fit(photos(), photos(5, start=500), stages=("probe",))
    return classifier


def test_a_probe_on_separable_photos_is_right_and_leaves_the_backbone(trained):
    backbone = tiny()
    before = copy.deepcopy(backbone.state_dict())
    classifier = FoodClassifier(backbone=backbone, preprocess=SMALL)
    report = classifier.fit(photos(), photos(5, start=500), stages=("probe",))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert report.validation.accuracy[1] == 1.0
    assert report.finetuned is None
    assert (report.photos, report.validation_photos, report.classes) == (30, 15, 3)
    json.dumps(report.to_dict())


def test_finetuning_trains_the_blocks_that_were_asked_for_and_no_statistics():
    backbone = tiny()
    before = copy.deepcopy(backbone.state_dict())
    classifier = FoodClassifier(backbone=backbone, preprocess=SMALL)
    report = classifier.fit(photos(), photos(5, start=500), blocks=1, epochs=2, backbone_lr=1e-2, head_lr=1e-2)
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"blocks.1.0.weight", "blocks.1.0.bias", "blocks.1.1.weight", "blocks.1.1.bias"}
    assert report.finetuned.steps == 2
    assert report.validation.accuracy[1] == 1.0
    assert not any(module.training for module in classifier.network.modules())


def test_finetuning_returns_the_average_of_its_weights():
    steps = {}
    for average in (0.0, 0.5):
        backbone, path = tiny(), []
        weight = backbone.blocks[1][0].weight
        FoodClassifier(backbone=backbone, preprocess=SMALL).fit(
            photos(), photos(2, start=500), epochs=3, batch_size=10, backbone_lr=1e-2, average=average,
            after_step=lambda step, loss, weight=weight, path=path: path.append(weight.detach().clone()),
        )  # fmt: skip
        steps[average] = path, weight.detach()
    (plain, last), (path, averaged) = steps[0.0], steps[0.5]
    assert all(torch.equal(x, y) for x, y in zip(plain, path, strict=True))  # averaging does not change training
    assert torch.equal(last, plain[-1])
    mean = path[0]
    for step, weight in enumerate(path, 1):
        mean = mean.lerp(weight, 1 - min(0.5, (1 + step) / (10 + step)))
    assert torch.allclose(averaged, mean, atol=1e-7)
    assert not torch.allclose(averaged, path[-1], atol=1e-4)


def test_auxiliary_heads_train_early_layers_and_are_dropped():
    changed = {}
    for auxiliary in (False, True):
        torch.manual_seed(0)
        classifier = FoodClassifier(backbone="inception-v1", preprocess=Preprocess(side=64))
        before = copy.deepcopy(classifier.network.backbone.state_dict())
        classifier.fit(
            photos(2), photos(2, start=500), stages=("finetune",), epochs=1, augment=False, auxiliary=auxiliary
        )
        after = classifier.network.backbone.state_dict()
        assert after.keys() == before.keys()
        changed[auxiliary] = after["inception_3a.one.weight"] - before["inception_3a.one.weight"]
    assert changed[True].abs().max() > 0
    assert not torch.allclose(changed[True], changed[False], atol=1e-7)


def test_frozen_blocks_stay_in_evaluation_mode_under_train():
    network = FoodNetwork(tiny(), 32, 3)
    network.backbone.blocks[0].requires_grad_(False)
    network.train()
    assert not network.backbone.blocks[0].training
    assert not network.backbone.blocks[1][1].training  # normalization, though its block is trained
    assert network.backbone.blocks[1][0].training
    assert network.head.training
    assert not network.eval().head.training


def test_rates_fall_from_the_head_to_the_stem():
    network = FoodNetwork(open_backbone("inception-v1").module, 1024, 3)
    groups = parameter_groups(network, head_lr=1e-2, backbone_lr=1e-3, layer_decay=0.5, blocks=None)
    assert [group["lr"] for group in groups] == [1e-2] + [1e-3 * 0.5**depth for depth in range(12)]
    count = sum(parameter.numel() for group in groups for parameter in group["params"])
    assert count == sum(parameter.numel() for parameter in network.parameters())
    assert groups[1]["params"][0] is network.backbone.inception_5b.one.weight
    assert groups[-1]["params"][0] is network.backbone.conv1.weight


def test_stages_are_the_blocks():
    assert [len(stage) for stage in stages_of(Tiny())] == [4, 4]


def test_the_papers_own_schedule():
    rates = []
    classifier = FoodClassifier(backbone=tiny(), preprocess=SMALL)
    report = classifier.fit(
        photos(),
        photos(2, start=500),
        stages=("finetune",),
        optimizer="sgd",
        polynomial_decay=True,
        scheduler="constant",
        warmup=0.0,
        head_lr=1e-2,
        backbone_lr=1e-3,
        epochs=3,
        batch_size=10,
        weight_decay=2e-4,
        after_step=lambda step, loss: rates.append(step),
    )
    assert rates == list(range(1, 10))
    assert report.finetuned.losses[-1] < report.finetuned.losses[0]


def test_the_same_seed_gives_the_same_weights():
    states = []
    for _ in range(2):
        classifier = FoodClassifier(backbone=tiny(), preprocess=SMALL)
        classifier.fit(photos(6), epochs=1, seed=3)
        states.append(classifier.network.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_without_validation_photos_some_are_kept_back():
    classifier = FoodClassifier(backbone=tiny(), preprocess=SMALL)
    report = classifier.fit(photos(20), stages=("probe",))
    assert report.photos + report.validation_photos == 60
    assert 6 <= report.validation_photos <= 12


def test_photos_that_are_bytes_without_a_name_are_groups_of_their_own():
    given = FoodPhotos([Example(x.photo, x.label) for x in photos(20)])
    assert len({x.group for x in given}) == 60
    assert Example(given[0].photo, "egg", Box(0, 0, 9, 9)).group == given[0].group
    report = FoodClassifier(backbone=tiny(), preprocess=SMALL).fit(given, stages=("probe",))
    assert 6 <= report.validation_photos <= 12
    alike = FoodPhotos([Example(x.photo, x.label, group="one plate") for x in given])
    with pytest.warns(UserWarning, match="never abstains; pass validation photos"):
        FoodClassifier(backbone=tiny(), preprocess=SMALL).fit(alike, stages=("probe",))


def test_a_balanced_probe_and_sampler_find_the_rare_class():
    many = photos(40, colors={"egg": COLORS["egg"], "bread": (215, 200, 170)})
    rare = [x for x in many if x.label == "egg"] + [x for x in many if x.label == "bread"][:3]
    data = FoodPhotos(rare, many.classes)
    held = photos(20, start=700, colors={"egg": COLORS["egg"], "bread": (215, 200, 170)})
    recalls = []
    for balanced in (False, True):
        classifier = FoodClassifier(backbone=tiny(), preprocess=SMALL)
        classifier.fit(data, held, stages=("probe",), strength=1e-3, balanced=balanced)
        found = {row.label: row.recall for row in classifier.evaluate(held).per_class}
        recalls.append(found["bread"])
    assert recalls[1] > recalls[0]
    report = FoodClassifier(backbone=tiny(), preprocess=SMALL).fit(
        data, held, stages=("finetune",), balanced=True, epochs=1
    )
    assert report.finetuned.steps == 2


def test_a_loss_that_is_not_finite_stops_and_restores():
    classifier = FoodClassifier(backbone=tiny(), preprocess=SMALL)
    data, held = photos(6), photos(2, start=500)
    classifier.fit(data, held, stages=("probe",))
    before = copy.deepcopy(classifier.network.state_dict())
    with pytest.raises(NonFiniteError):
        classifier.fit(
            data, held, stages=("finetune",), optimizer="sgd", head_lr=1e30, backbone_lr=1e30, epochs=5, warmup=0.0
        )
    assert all(torch.equal(value, before[name]) for name, value in classifier.network.state_dict().items())


def test_predictions(trained):
    found = trained.predict(photo(COLORS["tomato"], 77), topk=2)
    assert found.answer.label == "tomato"
    assert found.best.candidates[0] == found.answer
    assert len(found.best.candidates) == 2
    assert found.best.box is None
    assert set(found.to_dict()["regions"][0]) == {"box", "answer", "food", "probability", "reason", "candidates"}
    json.dumps(found.to_dict())
    with pytest.raises(PhotoError, match="topk"):
        trained.predict(photo(COLORS["tomato"], 77), topk=0)


def test_boxes_are_recognized_each_and_thinned_out(trained):
    plate = Image.new("RGB", (200, 100), COLORS["egg"])
    plate.paste(COLORS["tomato"], (0, 0, 100, 100))
    boxes = [(5, 5, 90, 90), (8, 8, 92, 92), (110, 5, 195, 95)]
    found = trained.predict(plate, boxes)
    assert sorted(region.candidates[0].label for region in found.regions) == ["egg", "tomato"]
    shares = [[x / 200, y / 100, w / 200, h / 100] for x, y, w, h in boxes]
    again = trained.predict(plate, shares, normalized=True)
    for first, second in zip(found.regions, again.regions, strict=True):
        assert first.box == pytest.approx(second.box)
        assert first.candidates[0].label == second.candidates[0].label
    from_array = inspect.unwrap(FoodClassifier.predict)(trained, plate, np.array(boxes))
    assert [region.box for region in from_array.regions] == [region.box for region in found.regions]
    with pytest.raises(PhotoError, match="an empty list"):
        trained.predict(plate, [])
    with pytest.raises(PhotoError, match="an empty list"):
        inspect.unwrap(FoodClassifier.predict)(trained, plate, np.empty((0, 4)))
    with pytest.raises(PhotoError, match="reaches out"):
        trained.predict(plate, [(0, 0, 900, 90)])


def test_overlapping_boxes_of_one_food_are_one_whatever_their_labels(trained, monkeypatch):
    monkeypatch.setattr(trained, "foods", dict.fromkeys(COLORS, "produce"))
    plate = Image.new("RGB", (200, 100), COLORS["egg"])
    plate.paste(COLORS["tomato"], (0, 0, 40, 100))
    found = trained.predict(plate, [(0, 0, 80, 100), (0, 0, 40, 100), (110, 5, 195, 95)], overlap=0.4)
    labels = {trained.predict(plate, [box]).best.candidates[0].label for box in ((0, 0, 80, 100), (0, 0, 40, 100))}
    assert len(labels) == 2
    assert len(found.regions) == 2


def test_orientation_does_not_change_a_prediction(trained):
    image = Image.open(io.BytesIO(photo(COLORS["spinach"], 5)))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    first, second = trained.predict(file.getvalue()), trained.predict(image)
    assert first.best.candidates == second.best.candidates


@pytest.mark.parametrize("views", ["flips", "ten"])
def test_averaging_over_views_is_invariant_to_a_flip(trained, views):
    image = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    flipped = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    probabilities = [
        {c.label: c.probability for c in trained.predict(x, views=views).best.candidates} for x in (image, flipped)
    ]
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)
    assert probabilities[0] != {c.label: c.probability for c in trained.predict(image).best.candidates}


def test_views_of_many_photos_are_those_of_each(trained):
    some = photos(2, start=700)
    logits = trained.logits(some, views="ten")
    for row, example in zip(trained.probabilities(logits), some, strict=True):
        best = trained.predict(example.photo, views="ten", topk=1).best.candidates[0]
        assert row.max().item() == pytest.approx(best.probability, abs=1e-5)
        assert trained.classes[int(row.argmax())] == best.label
    with pytest.raises(ModelError, match="views"):
        trained.logits(some, views="eleven")


def test_ten_crops_are_corners_and_center():
    image = Image.effect_mandelbrot((256, 256), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    pixels = Preprocess(side=224)
    found = pixels.views(image, kind="ten")
    places = [(0, 0), (32, 0), (0, 32), (32, 32), (16, 16)]
    expected = [pixels(image.crop((x, y, x + 224, y + 224))) for x, y in places]
    for number, tensor in enumerate(expected):
        assert found[2 * number].equal(tensor)  # 224 of 256 pixels, nothing is resampled
        assert found[2 * number + 1].equal(tensor.flip(2))
    assert pixels.views(image, kind="one")[0].equal(pixels(image))


def test_colors_change_within_their_range():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(60, 120, (40, 40, 3), dtype=np.uint8))
    plain = Preprocess(side=40, mean=(0.0,) * 3, std=(1.0,) * 3)
    draw = {"smallest": 1.0, "generator": torch.Generator().manual_seed(0)}
    found = torch.stack([plain.augmented(image, color=0.3, **draw) for _ in range(64)])
    mean = plain(image).mean()
    ratios = found.mean((1, 2, 3)) / mean  # contrast and saturation leave the mean where it is
    assert ((ratios > 0.68) & (ratios < 1.32)).all()
    assert ratios.std() > 0.1
    spread = found.std((1, 2, 3)) / found.mean((1, 2, 3)) / (plain(image).std() / mean)
    assert spread.min() < 0.85
    assert spread.max() > 1.15


def test_a_class_without_weights_changes_no_other_logit(trained):
    pixels = torch.randn(4, 3, 32, 32)
    before = trained.network(pixels)
    network = FoodNetwork(trained.network.backbone, 32, 4).eval()
    with torch.no_grad():
        network.head.weight.zero_()[:3].copy_(trained.network.head.weight)
        network.head.bias.zero_()[:3].copy_(trained.network.head.bias)
        assert torch.allclose(network(pixels)[:, :3], before, atol=1e-6)
        assert network(pixels)[:, 3].abs().max() == 0


def test_probabilities_are_float32_under_autocast(trained):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = trained.network(torch.randn(2, 3, 32, 32))
        assert logits.dtype == torch.bfloat16
        probabilities = trained.probabilities(logits)
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(1), torch.ones(2))


def test_topk_of_the_worked_example():
    logits, labels = torch.tensor([[0.1, 0.5, 0.4], [0.9, 0.05, 0.05]]), torch.tensor([2, 1])
    assert topk_accuracy(logits, labels, 1) == 0.0
    assert topk_accuracy(logits, labels, 2) == 1.0  # the tie goes to the lower class
    assert topk_accuracy(logits, torch.tensor([2, 2]), 2) == 0.5


def test_polynomial_schedule_of_the_worked_example():
    rates = [polynomial(0.01, step, 72_000) for step in (0, 18_000, 36_000, 72_000)]
    assert rates == pytest.approx([0.01, 0.00866025, 0.00707107, 0.0], abs=1e-8)


def test_temperature_changes_no_ranking_and_finds_the_factor():
    torch.manual_seed(0)
    logits = torch.randn(4000, 5)
    targets = torch.distributions.Categorical(logits=logits).sample()
    assert fit_temperature(logits * 2.5, targets) == pytest.approx(2.5, rel=0.1)
    assert fit_temperature(logits * 0.5, targets) == pytest.approx(0.5, rel=0.1)
    sure = torch.eye(5) * 9
    assert fit_temperature(sure, torch.arange(5)) >= 0.05  # all right: as sharp as is allowed, not 0


def test_threshold_gives_the_precision_where_one_does():
    torch.manual_seed(0)
    probabilities = torch.softmax(torch.randn(3000, 4) * 2, 1)
    targets = torch.distributions.Categorical(probs=probabilities).sample()
    threshold = abstain_threshold(probabilities, targets, precision=0.9)
    confidence, answer = probabilities.max(1)
    given = confidence >= threshold
    assert (answer == targets)[given].double().mean() >= 0.9
    below = confidence >= threshold - 0.05
    assert (answer == targets)[below].double().mean() < 0.9
    assert abstain_threshold(probabilities, (answer + 1) % 4, precision=0.9) == 1.0


def test_the_probe_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    torch.manual_seed(0)
    x = torch.randn(200, 7) * torch.tensor([1, 5, 0.1, 1, 1, 2, 0.0]) + 3
    y = (x[:, 0] + x[:, 4] > 6).long() + (x[:, 1] > 5).long()
    probe = fit_probe(x, y, 3, strength=0.5)
    z = ((x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-4)).numpy()
    z[:, 6] = 0
    reference = LogisticRegression(C=0.5, tol=1e-8, max_iter=2000).fit(z, y.numpy())
    ours = torch.softmax(x @ probe.weight.T + probe.bias, 1)
    assert torch.allclose(ours, torch.from_numpy(reference.predict_proba(z)).float(), atol=2e-3)
    assert probe.weight[:, 6].abs().max() == 0  # a constant feature


def test_what_is_saved_loads_with_the_same_probabilities(trained, tmp_path):
    trained.foods = {"egg": "chicken egg"}
    trained.save_pretrained(tmp_path / "model")
    loaded = FoodClassifier.from_pretrained(tmp_path / "model", backbone=tiny(seed=9))
    picture = photo(COLORS["egg"], 3)
    assert loaded.predict(picture) == trained.predict(picture)
    assert loaded.predict(picture).answer.food == "chicken egg"
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "egg", "1": "spinach", "2": "tomato"}
    assert config["label2id"]["tomato"] == 2
    with pytest.raises(ModelError, match="backbone=module"):
        FoodClassifier.from_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match="exists"):
        trained.save_pretrained(tmp_path / "model")


def test_damaged_folders_are_refused(trained, tmp_path):
    trained.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())

    def broken(**changes):
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)
        shutil.copytree(tmp_path / "model", tmp_path / "broken")
        (tmp_path / "broken" / "config.json").write_text(json.dumps({**config, **changes}))
        return FoodClassifier.from_pretrained(tmp_path / "broken", backbone=tiny())

    for changes, message in (
        ({"version": 9}, "version 9"),
        ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ({"id2label": {"0": "a"}}, r"tensor 'head\.\w+'"),
        ({"temperature": None}, "temperature"),
        ({"threshold": float("nan")}, "threshold"),
        ({"preprocess": {"side": 32}}, "preprocessing"),
        ({"foods": {"a": 1}}, "foods"),
        ({"hidden_size": 33}, "features of the backbone"),
    ):
        with pytest.raises(ModelError, match=message):
            broken(**changes)
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"0123456789")
    with pytest.raises(ModelError, match="cannot be read"):
        FoodClassifier.from_pretrained(tmp_path / "broken", backbone=tiny())
    with pytest.raises(ModelError, match="no folder there"):
        FoodClassifier.from_pretrained(tmp_path / "none")


def test_a_hugging_face_model_is_a_backbone(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_labels=7)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    ViTImageProcessor(size={"height": 40, "width": 40}, image_mean=[0.4] * 3).save_pretrained(tmp_path / "resnet")
    classifier = FoodClassifier(backbone=tmp_path / "resnet")
    assert classifier.preprocess.side == 40
    assert classifier.preprocess.mean == (0.4,) * 3
    report = classifier.fit(photos(6), photos(2, start=500), epochs=1, blocks=1)
    assert report.validation.accuracy[1] > 0.8
    classifier.save_pretrained(tmp_path / "food")
    shutil.rmtree(tmp_path / "resnet")  # the saved folder needs nothing of it
    loaded = FoodClassifier.from_pretrained(tmp_path / "food")
    assert loaded.predict(photo(COLORS["egg"], 3)) == classifier.predict(photo(COLORS["egg"], 3))


def test_the_embedded_backbone(tmp_path):
    opened = open_backbone("efficientnet_lite0", preprocess=Preprocess(side=64))
    assert opened.features == 1280
    assert opened.head.out_features == 1000
    assert len(stages_of(opened.module)) == 20  # stem, 16 blocks, the last convolution; two normalizations
    classifier = FoodClassifier(backbone=opened, preprocess=opened.preprocess)
    classifier.fit(photos(3), photos(2, start=500), stages=("probe",))
    classifier.save_pretrained(tmp_path / "changed", weights="changed", dtype=torch.float16)
    assert (tmp_path / "changed" / "model.safetensors").stat().st_size < 20_000  # the head alone
    loaded = FoodClassifier.from_pretrained(tmp_path / "changed")
    picture = photo(COLORS["tomato"], 3)
    first, second = classifier.predict(picture), loaded.predict(picture)
    assert first.answer.label == second.answer.label
    assert first.answer.probability == pytest.approx(second.answer.probability, abs=0.01)


def test_what_cannot_be_a_classifier():
    with pytest.raises(ModelError, match="fails on images of 224 pixels|expected features"):
        FoodClassifier(["a", "b"], nn.Linear(3, 4))
    with pytest.raises(ModelError, match="nothing there"):
        FoodClassifier(["a", "b"], "embedded:none")
    with pytest.raises(ModelError, match="no classes"):
        FoodClassifier(backbone=tiny(), preprocess=SMALL).predict(Image.new("RGB", (50, 50)))
    with pytest.raises(ModelError, match="unique"):
        FoodClassifier(["a", "a"], tiny(), preprocess=SMALL)
    classifier = FoodClassifier(backbone=tiny(), preprocess=SMALL)
    with pytest.raises(ModelError, match="stages"):
        classifier.fit(photos(3), stages=("warmup",))
    with pytest.raises(ModelError, match="stages: found none"):
        classifier.fit(photos(3), stages=())
    with pytest.raises(PhotoError, match="1 classes"):
        classifier.fit(photos(3, colors={"egg": COLORS["egg"]}))
    with pytest.raises(PhotoError, match="not in the training photos"):
        classifier.fit(photos(3), photos(2, colors={"leek": (0, 90, 0)}))
    with pytest.raises(ModelError, match="label_smoothing"):
        classifier.fit(photos(3), stages=("finetune",), label_smoothing=1.5)
