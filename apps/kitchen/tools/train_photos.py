"""Train the food classifier that comes with the package, and say what it does on photos that chose nothing.

The grocery heads are trained on the training photos of the Grocery Store Dataset (MIT license): a linear probe, and the
network with fine-tuned last blocks. The eight numbers of the gate, and the threshold, are chosen on one half of: its
validation photos, ECUSTFD (foods on plates, of another camera and country) and CIFAR-10 (no food); what is printed and
stored is measured on the other half. ECUSTFD and CIFAR-10 give nothing to the package but these nine numbers.

    python apps/kitchen/tools/train_photos.py DATA

DATA has the folders apps/grocery-store, apps/ecustfd and cifar10-jpeg. What takes minutes is kept in CACHE.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from PIL import Image
from platformdirs import user_cache_path
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from weightsmith.core.io import atomic_output, write_file
from weightsmith.core.progress import track
from weightsmith_kitchen.photos.backbones import LITE0, open_backbone
from weightsmith_kitchen.photos.boxes import Box
from weightsmith_kitchen.photos.classifier import FoodClassifier
from weightsmith_kitchen.photos.finetune import PhotoPixels
from weightsmith_kitchen.photos.folder import Example, FoodPhotos
from weightsmith_kitchen.photos.merged import (
    NOT_FOOD,
    Evidence,
    Gate,
    MergedNetwork,
    food_table,
    merged_log_probabilities,
)
from weightsmith_kitchen.photos.preprocess import Preprocess
from weightsmith_kitchen.photos.probe import fit_probe
from weightsmith_kitchen.photos.storage import Parts, save

OUT = Path(__file__).parents[1] / "src/weightsmith_kitchen/photos/data/default"
EVERY = 7
"""Of CIFAR-10's test images, every seventh is read."""

STRENGTH, STEPS, ENOUGH = 0.03, 300, 400
PRECISION, WRONG = 0.9, 0.05
"""Right among the answers for groceries, and the most wrong answers for all photos of another source."""

SIDE, BLOCKS, EPOCHS = 128, 7, 6
"""Of the fine-tuned network: its input, the blocks that are trained, and passes over the photos."""

SAME_FOOD = {"qiwi": "kiwifruit", "bread": "french bread"}
"""ECUSTFD's names of foods that the table has under another."""

NOTICE = """The weights in this folder are blocks of EfficientNet-Lite0 (Apache License 2.0) that were fine-tuned on,
linear layers that were fitted to, and means of features of, the training photos of the Grocery Store Dataset.

Grocery Store Dataset: Marcus Klasson, Cheng Zhang and Hedvig Kjellstrom, "A Hierarchical Grocery Store Image Dataset
with Visual and Semantic Labels", WACV 2019. github.com/marcusklasson/GroceryStoreDataset

MIT License

Copyright (c) 2019 Marcus Klasson

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass
class Group:
    """Photos of one source: their evidence, the foods that count as right (by column), and the half they are in."""

    name: str
    evidence: Evidence
    right: Tensor
    first: Tensor

    def half(self, first: bool) -> Group:
        """One half of the photos."""
        return self.rows(torch.nonzero(self.first == first)[:, 0])

    def spread(self, count: int) -> Group:
        """So many of the photos, evenly spaced; all if there are no more."""
        return self.rows(torch.linspace(0, len(self.right) - 1, min(count, len(self.right))).long())

    def rows(self, places: Tensor) -> Group:
        """Some of the photos."""
        parts = {name: value[places] for name, value in vars(self.evidence).items()}
        return Group(self.name, Evidence(**parts), self.right[places], self.first[places])


def main() -> None:
    """Train, choose, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path, default=user_cache_path("weightsmith", ensure_exists=True) / "kitchen")
    arguments = parser.parse_args()
    data, cache = arguments.data, arguments.cache
    cache.mkdir(parents=True, exist_ok=True)
    opened = open_backbone(LITE0)
    assert opened.head is not None
    network = MergedNetwork(opened.module, opened.head, Gate()).eval()
    train, validation = (grocery(data / "apps/grocery-store", part) for part in ("train", "val"))
    network.tuned.load_state_dict(tuned(train, validation, cache / "tuned").network.state_dict())

    @torch.no_grad()
    def read(name: str, photos: FoodPhotos, kind: str = "lite0") -> Tensor:
        path = cache / f"{kind}-{name}.safetensors"
        if not path.exists():
            function = network.features if kind == "lite0" else network.tuned_logits
            loader = track(DataLoader(PhotoPixels(photos, opened.preprocess), 32), f"{kind}, {name}")
            with atomic_output(path) as target:
                save_file({"found": torch.cat([function(pixels) for pixels, _ in loader])}, target)
        return load_file(path)["found"]

    def group(name: str, photos: FoodPhotos, right: Tensor, first: Tensor) -> Group:
        with torch.no_grad():
            evidence = network.evidence(read(name, photos), read(name, photos, "tuned"))
        return Group(name, evidence, right, first)

    x, y = read("grocery-train", train), torch.from_numpy(train.targets)
    probe = fit_probe(x, y, len(train.classes), strength=STRENGTH)
    with torch.no_grad():
        network.head.weight.copy_(probe.weight.half())
        network.head.bias.copy_(probe.bias.half())
        network.center.copy_(x.mean(0).half())
        network.means.copy_(torch.stack([x[y == place].mean(0) for place in range(len(train.classes))]).half())
    one_hot = torch.eye(len(network.labels), dtype=torch.bool)
    halves = torch.arange(len(validation)) % 2 == 0
    groups = [group("grocery-val", validation, one_hot[torch.from_numpy(validation.targets)], halves)]
    for name, photos in ecustfd(data / "apps/ecustfd").items():
        portions = sorted({example.group for example in photos})
        halves = torch.tensor([portions.index(example.group) % 2 == 0 for example in photos])
        groups.append(group(f"ecustfd-{name}", photos, torch.stack([named(x.label) for x in photos]), halves))
    others = cifar(data / "cifar10-jpeg")
    halves = torch.arange(len(others)) % 2 == 0
    groups.append(group("cifar-test", others, one_hot[-1].expand(len(others), -1), halves))
    kept = cache / "gate.json"
    if not kept.exists():
        write_file(kept, json.dumps(chosen_gate([group.half(True).spread(ENOUGH) for group in groups]).to_dict()))
    gate = Gate.from_dict(json.loads(kept.read_text("utf-8")))
    network.gate = gate
    threshold = chosen_threshold([group.half(True) for group in groups], network)
    report = {group.name: measured(group.half(False), network, threshold) for group in groups}
    print(json.dumps({"gate": gate.to_dict(), "threshold": threshold, "measured": report}, indent=2))
    foods = {row.label: row.food for row in food_table()}
    parts = Parts(network, LITE0, network.labels, opened.preprocess, foods, 1.0, threshold)
    texts = {"NOTICE": NOTICE, "report.json": json.dumps(report, indent=2) + "\n"}
    save(parts, OUT, weights="changed", dtype=torch.float16, files=texts, overwrite=True)


def tuned(train: FoodPhotos, validation: FoodPhotos, folder: Path) -> FoodClassifier:
    """The classifier whose last blocks are fine-tuned to the groceries; from the cache if it is there."""
    if not folder.exists():
        classifier = FoodClassifier(train.classes, LITE0, preprocess=Preprocess(side=SIDE))
        report = classifier.fit(
            train,
            validation,
            strength=STRENGTH,
            blocks=BLOCKS,
            epochs=EPOCHS,
            head_lr=1e-3,
            backbone_lr=1e-3,
            layer_decay=0.85,
            train_side=SIDE,
            smallest=0.6,
            color=0.0,
            average=0.0,
            after_step=lambda step, loss: print(f"step {step}: {loss:.4f}", flush=True) if step % 83 == 0 else None,
        )
        print(report.validation.accuracy if report.validation else None)
        classifier.save_pretrained(folder, weights="changed", dtype=torch.float16)
    return FoodClassifier.from_pretrained(folder)


def chosen_gate(groups: Sequence[Group]) -> Gate:
    """The gate with the highest likelihood of the right labels; each source weighs alike."""
    start = Gate()
    positive, share = {"temperature", "image_temperature", "softness"}, {"tuned"}
    raw = {
        name: math.log(value) if name in positive else math.log(value / (1 - value)) if name in share else value
        for name, value in start.to_dict().items()
    }
    free = {name: nn.Parameter(torch.tensor(value)) for name, value in raw.items()}
    solver = torch.optim.Adam(free.values(), lr=0.05)

    def values() -> dict[str, Tensor]:
        return {
            name: value.exp() if name in positive else value.sigmoid() if name in share else value
            for name, value in free.items()
        }

    for _ in range(STEPS):
        solver.zero_grad()
        gate = cast(Gate, SimpleNamespace(**values()))
        torch.stack([nll(group, gate) for group in groups]).mean().backward()
        solver.step()
    return Gate(**{name: round(value.item(), 4) for name, value in values().items()})


def nll(group: Group, gate: Gate) -> Tensor:
    """Of the right labels together."""
    found = merged_log_probabilities(group.evidence, gate)
    return -found.masked_fill(~group.right, -torch.inf).logsumexp(1).mean()


def answers(group: Group, network: MergedNetwork) -> tuple[Tensor, Tensor, Tensor]:
    """Of each photo: the confidence in the answer, whether it is right, and whether the photo is taken for food."""
    found = merged_log_probabilities(group.evidence, network.gate).exp()
    foods = food_columns()
    by_food = found[:, :-2].new_zeros(len(found), int(foods.max()) + 1).index_add_(1, foods, found[:, :-2])
    best = found[:, :-2].argmax(1)
    rows = torch.arange(len(best))
    right_foods = by_food.new_zeros(by_food.shape).index_add_(1, foods, group.right[:, :-2].float()) > 0
    return by_food[rows, foods[best]], right_foods[rows, foods[best]], found[:, -1] <= 0.5


@torch.no_grad()
def chosen_threshold(groups: Sequence[Group], network: MergedNetwork) -> float:
    """The lowest threshold with the precision on groceries, and few wrong answers on every other source."""
    for threshold in np.arange(0.05, 1.0, 0.01).tolist():
        good = True
        for group in groups:
            sure, right, food = answers(group, network)
            given = food & (sure >= threshold)
            wrong = (given & ~right).float()
            limit = (1 - PRECISION) * given.float().mean() if group is groups[0] else WRONG
            good = good and bool(wrong.mean() <= limit)
        if good:
            return round(threshold, 2)
    return 1.0


@torch.no_grad()
def measured(group: Group, network: MergedNetwork, threshold: float) -> dict[str, float]:
    """Shares of photos: taken for food, answered, and right labels and foods."""
    found = merged_log_probabilities(group.evidence, network.gate).exp()
    confidence, right, food = answers(group, network)
    answered = food & (confidence >= threshold)
    ranked = found[:, :-2].topk(5, 1).indices
    named = group.right[:, :-2].any(1)
    values = {
        "photos": float(len(found)),
        "taken for food": food.float().mean().item(),
        "answered": answered.float().mean().item(),
        "right food of answered": right[answered].float().mean().item() if answered.any() else 0.0,
        "with a label": named.float().mean().item(),
    }
    if named.any():
        hits = group.right[named].gather(1, ranked[named])
        values |= {
            "right label of these": hits[:, 0].float().mean().item(),
            "right food of these": right[named].float().mean().item(),
            "right label among five": hits.any(1).float().mean().item(),
        }
    return {name: round(value, 4) for name, value in values.items()}


def food_columns() -> Tensor:
    """The number of every label's food."""
    names = list(dict.fromkeys(row.food for row in food_table()))
    return torch.tensor([names.index(row.food) for row in food_table()])


def named(food: str) -> Tensor:
    """The labels that are right for a food's plain name: that of other food if the table does not have it."""
    found = torch.tensor([row.food == SAME_FOOD.get(food, food) for row in food_table()])
    return torch.cat([found, ~found.any()[None], torch.tensor([False])])


def grocery(folder: Path, part: str) -> FoodPhotos:
    """The photos of a part of Grocery Store, with the classes in its own order."""
    rows = [line.split(", ") for line in (folder / f"{part}.txt").read_text("utf-8").splitlines()]
    with zipfile.ZipFile(folder / "grocery_128.zip") as archive:
        examples = [Example(archive.read(row[0]), row[0].split("/")[-2], name=row[0]) for row in rows]
    return FoodPhotos(examples, [row.label for row in food_table()[:81]])


def ecustfd(folder: Path) -> dict[str, FoodPhotos]:
    """The photos of one food each, whole and by its box."""
    rows = json.loads((folder / "ecustfd.json").read_text("utf-8"))
    parts: dict[str, list[Example]] = {"boxes": [], "plates": []}
    with zipfile.ZipFile(folder / "ecustfd_224.zip") as archive:
        for row in rows:
            foods = [found for found in row["objects"] if found["name"] != "coin"]
            if len(foods) == 1:
                photo, label = archive.read(row["file"]), foods[0]["name"]
                for kind, box in (("boxes", Box(*foods[0]["box"])), ("plates", None)):
                    group = row["portion_id"] or row["file"].split("(")[0][:-1]
                    parts[kind].append(Example(photo, label, box, group, row["file"]))
    return {kind: FoodPhotos(examples) for kind, examples in parts.items()}


def cifar(folder: Path) -> FoodPhotos:
    """Images of vehicles and animals, enlarged to the least that a photo has."""
    with np.load(folder / "test.npz") as stored:
        data, offsets = stored["jpeg"].tobytes(), stored["offsets"].tolist()
    examples = []
    for place in range(0, len(offsets) - 1, EVERY):
        image = Image.open(io.BytesIO(data[offsets[place] : offsets[place + 1]])).convert("RGB")
        file = io.BytesIO()
        image.resize((224, 224), Image.Resampling.BICUBIC).save(file, "PNG")
        examples.append(Example(file.getvalue(), NOT_FOOD, name=f"CIFAR-10 {place}"))
    return FoodPhotos(examples)


if __name__ == "__main__":
    main()
