"""What the command line calls: folders in, one report out, a bad photo stops nothing."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from weightsmith.core.errors import CheckpointError
from weightsmith_kitchen import FoodClassifier
from weightsmith_kitchen.errors import PhotoError
from weightsmith_kitchen.photos.commands import find_photos, recognize, train_recognize
from weightsmith_kitchen.photos.preprocess import Preprocess

COLORS = {"tomato": (200, 40, 30), "spinach": (40, 140, 50)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for number, (label, color) in enumerate(COLORS.items()):
        for photo in range(10):
            rng = np.random.default_rng(100 * number + photo)
            coarse = np.clip(np.array(color) + rng.normal(0, 40, (5, 6, 3)), 0, 255).astype(np.uint8)
            (root / label).mkdir(exist_ok=True)
            Image.fromarray(coarse).resize((72, 60)).save(root / label / f"{photo}.png")
    return root


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "mine"
    return train_recognize(photos, out, stages=("probe",), side=64), out


def test_training_writes_a_classifier_and_its_report(trained):
    result, out = trained
    assert result.test.accuracy[1] == 1.0
    assert result.training.photos + result.training.validation_photos + result.test.photos == 20
    report = json.loads((out / "report.json").read_text())
    assert report == json.loads(json.dumps(result.to_dict()))
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= {
        x.name for x in out.iterdir()
    }
    assert FoodClassifier.from_pretrained(out).preprocess == Preprocess(side=64)


def test_an_output_that_exists_is_refused_before_training(photos, trained):
    with pytest.raises(CheckpointError, match="exists"):
        train_recognize(photos, trained[1], stages=("probe",), side=64)


def test_recognizing_lists_what_cannot_be_read(photos, trained, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"<html>")
    shutil.copy(photos / "tomato" / "3.png", tmp_path / "c.png")
    found = recognize([tmp_path, photos / "spinach" / "0.png"], model=trained[1], topk=1)
    assert [photo.best.candidates[0].label for photo in found.photos] == ["tomato", "spinach"]
    assert [failure.error.count("an HTML page") for failure in found.failures] == [1, 1]
    assert set(found.to_dict()) == {"photos", "failures"}
    json.dumps(found.to_dict())
    assert found.table().row_count == 4


def test_boxes_of_photos(photos, trained, tmp_path):
    plate = Image.new("RGB", (200, 100), COLORS["tomato"])
    plate.paste(COLORS["spinach"], (100, 0, 200, 100))
    plate.save(tmp_path / "plate.png")
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"plate.png": [[5, 5, 95, 95], [105, 5, 195, 95]]}))
    found = recognize([tmp_path / "plate.png"], model=trained[1], boxes=boxes)
    assert {region.candidates[0].label for region in found.photos[0].regions} == set(COLORS)
    assert found.table().row_count == 2
    boxes.write_text(json.dumps({"other.png": [[5, 5, 95, 95]]}))
    with pytest.raises(PhotoError, match="for no photo, such as other.png"):
        recognize([tmp_path / "plate.png"], model=trained[1], boxes=boxes)
    boxes.write_text("[")
    with pytest.raises(PhotoError, match="expected JSON"):
        recognize([tmp_path / "plate.png"], model=trained[1], boxes=boxes)


def test_photos_are_found(photos, tmp_path):
    assert len(find_photos([photos])) == 20
    assert find_photos([photos / "tomato" / "1.png", photos / "tomato" / "0.png"])[0].name == "1.png"
    with pytest.raises(PhotoError, match="no photos"):
        find_photos([tmp_path])
    with pytest.raises(PhotoError, match="no such file"):
        find_photos([tmp_path / "none.jpg"])
