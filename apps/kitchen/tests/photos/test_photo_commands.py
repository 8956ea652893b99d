"""Training on a folder of photos: one report out."""

import json

import numpy as np
import pytest
from PIL import Image

from weightsmith.core.errors import CheckpointError
from weightsmith_kitchen import FoodClassifier
from weightsmith_kitchen.photos.commands import train_recognize
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
