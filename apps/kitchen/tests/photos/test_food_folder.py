"""Folders and tables of labeled photos: read whatever their layout, split so that no plate leaks."""

import json
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from weightsmith_kitchen.errors import PhotoError
from weightsmith_kitchen.photos.folder import Example, FoodFolder, FoodPhotos, grouped_split


def picture(path, seed, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(path)


def plates(root, per_class=6):
    for number, label in enumerate(("peas", "rice", "soup")):
        for photo in range(per_class):
            picture(root / label / f"{photo}.png", 100 * number + photo)


def test_a_folder_for_each_class(tmp_path):
    plates(tmp_path)
    (tmp_path / "rice" / "notes.txt").write_text("no photo")
    (tmp_path / "rice" / ".hidden.png").write_bytes(b"")
    found = FoodFolder(tmp_path)
    assert found.classes == ("peas", "rice", "soup")
    assert len(found.train) + len(found.validation) + len(found.test) == 18
    assert found.train.num_classes == found.test.num_classes == 3
    assert all(np.bincount(found.train.targets, minlength=3) >= 1)
    assert [x.name for x in found.train] == [x.name for x in FoodFolder(tmp_path).train]  # the same seed


def test_parts_that_the_folders_tell_are_kept_and_their_leaks_listed(tmp_path):
    plates(tmp_path / "train")
    plates(tmp_path / "val", 2)
    found = FoodFolder(tmp_path)
    assert len(found.train) == 18
    assert len(found.validation) == 6
    assert len(found.test) == 0
    assert ("train/rice/0.png", "val/rice/0.png") in [tuple(sorted(pair)) for pair in found.leaks]
    assert len(found.leaks) == 6


def test_photos_that_look_the_same_stay_together(tmp_path):
    plates(tmp_path)
    for copy in range(10):
        image = Image.open(tmp_path / "rice" / "0.png")
        image.resize((80 + 4 * copy, 60 + 3 * copy)).save(tmp_path / "rice" / f"copy{copy}.jpg", quality=60 + copy)
    for seed in range(3):
        found = FoodFolder(tmp_path, shares=(1, 1, 1), seed=seed)
        parts = found.train, found.validation, found.test
        holding = [any(x.name.startswith("rice/copy") or x.name == "rice/0.png" for x in part) for part in parts]
        assert sum(holding) == 1


def table_rows(tmp_path):
    for number in range(8):
        picture(tmp_path / f"{number}.png", number)
    return [
        {"file": f"{n}.png", "label": "ab"[n % 2], "box": [4, 4, 40, 40], "group": f"plate {n // 2}"} for n in range(8)
    ]


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "corners"])
def test_tables(tmp_path, kind):
    rows = table_rows(tmp_path)
    if kind == "json":
        path = tmp_path / "t.json"
        path.write_text(json.dumps(rows))
    elif kind == "jsonl":
        path = tmp_path / "t.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "csv":
        path = tmp_path / "t.csv"
        lines = [f'{r["file"]},{r["label"]},"4 4 40 40",{r["group"]}' for r in rows]
        path.write_text("\ufefffile,label,box,group\n" + "\n".join(lines), "utf-8")
    else:
        path = tmp_path / "t.csv"
        lines = [f"{r['file']},{r['label']},4,4,40,40,{r['group']}" for r in rows]
        path.write_text("path,class,xmin,ymin,xmax,ymax,group\n" + "\n".join(lines))
    found = FoodFolder(path, shares=(2, 1, 1))
    examples = [*found.train, *found.validation, *found.test]
    assert len(examples) == 8
    assert {x.box for x in examples} == {(4.0, 4.0, 40.0, 40.0)}
    where = defaultdict(set)
    for name, part in (("train", found.train), ("validation", found.validation), ("test", found.test)):
        for example in part:
            where[example.group].add(name)
    assert len(where) == 4
    assert all(len(parts) == 1 for parts in where.values())


def test_all_boxes_of_a_photo_are_in_one_part(tmp_path):
    rows = []
    for number in range(6):
        picture(tmp_path / f"{number}.png", number)
        for label, box in (("rice", [0, 0, 30, 40]), ("peas", [30, 0, 64, 40])):
            rows.append({"file": f"{number}.png", "label": label, "box": box})
    (tmp_path / "t.json").write_text(json.dumps(rows))
    found = FoodFolder(tmp_path / "t.json", shares=(1, 1, 1))
    parts = [{x.photo for x in part} for part in (found.train, found.validation, found.test)]
    assert sum(map(len, parts)) == 6
    assert all(len(part) for part in parts)


def test_boxes_beside_a_folder(tmp_path):
    plates(tmp_path / "photos", 2)
    boxes = {"rice/0.png": [0.25, 0.25, 0.75, 0.75]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    found = FoodFolder(tmp_path / "photos", boxes=tmp_path / "boxes.json", normalized=True, shares=(1, 0, 0))
    assert [x.box for x in found.train if x.box] == [(16.0, 12.0, 48.0, 36.0)]
    with pytest.raises(PhotoError, match="Pass normalized=True"):
        FoodFolder(tmp_path / "photos", boxes=boxes)
    with pytest.raises(PhotoError, match="for no photo, such as soap/1.png"):
        FoodFolder(tmp_path / "photos", boxes={"soap/1.png": [0, 0, 20, 20]})


def test_errors_name_the_file(tmp_path):
    with pytest.raises(PhotoError, match="nothing there"):
        FoodFolder(tmp_path / "none")
    with pytest.raises(PhotoError, match="no photos in"):
        FoodFolder(tmp_path)
    plates(tmp_path / "a")
    picture(tmp_path / "a" / "leek" / "0.png", 999)
    with pytest.raises(PhotoError, match=r"fewer than two photos to train on: found \['leek'\]"):
        FoodFolder(tmp_path / "a")
    plates(tmp_path / "b" / "train")
    picture(tmp_path / "b" / "test" / "leek" / "0.png", 999)
    with pytest.raises(PhotoError, match=r"not in the training photos: found \['leek'\]"):
        FoodFolder(tmp_path / "b")
    table = tmp_path / "t.json"
    rows = table_rows(tmp_path)
    table.write_text(json.dumps([{**rows[0], "box": [0, 0, 640, 10]}, *rows[1:]]))
    with pytest.raises(PhotoError, match="box of 0.png reaches out of the photo"):
        FoodFolder(table)
    table.write_text(json.dumps([{**rows[0], "file": "gone.png"}, *rows[1:]]))
    with pytest.raises(PhotoError, match="photo gone.png: found no such file"):
        FoodFolder(table)
    table.write_text(json.dumps([{"file": "0.png"}]))
    with pytest.raises(PhotoError, match="row 1 of .* has no label"):
        FoodFolder(table)
    table.write_text(json.dumps([{**rows[0], "split": "train"}, *rows[1:]]))
    with pytest.raises(PhotoError, match="has no split"):
        FoodFolder(table)
    table.write_text(json.dumps([{**rows[0], "split": "dev"}]))
    with pytest.raises(PhotoError, match="split: found dev"):
        FoodFolder(table)
    table.write_text("{")
    with pytest.raises(PhotoError, match="is no JSON"):
        FoodFolder(table)
    (tmp_path / "0.png").write_bytes(b"<html>")
    table.write_text(json.dumps(rows))
    with pytest.raises(PhotoError, match="photo 0.png: found an HTML page"):
        FoodFolder(table)


def test_labels_that_are_not_classes():
    with pytest.raises(PhotoError, match="not in the training photos"):
        FoodPhotos([Example("a.jpg", "leek")], ["rice"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 14)), min_size=3, max_size=60),
    st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.0, 0.5), (1, 1, 1)]),
    st.integers(0, 3),
)
def test_no_group_is_in_two_parts_and_every_class_is_trained(pairs, shares, seed):
    labels = [label for label, _ in pairs]
    groups = [f"{label}{number}" if number % 2 else str(number) for label, number in pairs]
    parts = grouped_split(labels, groups, shares=shares, seed=seed)
    assert all(len({p for p, g in zip(parts, groups, strict=True) if g == group}) == 1 for group in set(groups))
    assert {label for label, part in zip(labels, parts, strict=True) if part == "train"} == set(labels)
    if shares[1] == 0:
        assert "validation" not in parts


def test_shares_are_met_where_groups_are_small():
    labels = ["a"] * 200 + ["b"] * 40
    parts = grouped_split(labels, [str(n) for n in range(240)], shares=(0.7, 0.15, 0.15))
    for label, count in (("a", 200), ("b", 40)):
        own = [part for part, other in zip(parts, labels, strict=True) if other == label]
        assert own.count("train") == pytest.approx(0.7 * count, abs=1)
        assert own.count("test") == pytest.approx(0.15 * count, abs=1)
