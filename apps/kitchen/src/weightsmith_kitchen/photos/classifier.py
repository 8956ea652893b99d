"""DeepFood: food photos to ranked foods, by a pretrained network that is fine-tuned in two stages.

Liu, Cao, Luo, Chen, Vokkarane and Ma (2016), arXiv:1606.05675, fine-tune all layers of an Inception network at once.
Here a linear probe is fitted first (LP-FT), probabilities are calibrated, and the classifier may abstain.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from typing import Literal, Unpack, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from weightsmith.core.data import collate
from weightsmith.core.models import device_of, evaluation_mode
from weightsmith.core.progress import track
from weightsmith.core.training import FitOptions
from weightsmith_kitchen.errors import ModelError, PhotoError
from weightsmith_kitchen.photos.backbones import INCEPTION, LITE0, FoodNetwork, OpenedBackbone, open_backbone
from weightsmith_kitchen.photos.boxes import Box, as_box, nms
from weightsmith_kitchen.photos.calibration import abstain_threshold, fit_temperature
from weightsmith_kitchen.photos.finetune import AVERAGE, COLOR, SMALLEST_PART, OptimizerName, PhotoPixels, finetune
from weightsmith_kitchen.photos.folder import FoodPhotos, grouped_split
from weightsmith_kitchen.photos.images import PhotoSource, name_of, open_photo, original_size
from weightsmith_kitchen.photos.merged import NOT_FOOD, OTHER_FOOD
from weightsmith_kitchen.photos.preprocess import Preprocess, Views
from weightsmith_kitchen.photos.probe import fit_probe
from weightsmith_kitchen.photos.results import Candidate, Evaluation, Recognition, Region, Training, topk_classes
from weightsmith_kitchen.photos.storage import Parts, load, save

__all__ = ["FoodClassifier", "Stage", "plain_name"]

Stage = Literal["probe", "finetune"]
BATCH = 32
NO_LABELS = (OTHER_FOOD, NOT_FOOD)
"""Classes of the default classifier that are no answers."""
HELD_OUT = 0.15
"""Share of the training photos that calibrates the probabilities when there are no validation photos."""

TRAIN_SHARE = 0.8
"""Of the side of predictions, the side of photos in fine-tuning."""

# 10 epochs and the rates of `fit` (head and backbone 1e-3, a decay per block of 0.85), not 20 epochs and 3e-4, 3e-5 and
# 0.75: the claim's fine-tuning on EfficientNet-Lite0 was measured with these rates, and passes after the sixth of
# twelve gained nothing there. Not tuned further; the last blocks of other backbones keep 3e-5.
FINETUNE: FitOptions = {"epochs": 10, "batch_size": 32, "weight_decay": 1e-2, "scheduler": "cosine", "warmup": 0.05}


class FoodClassifier:
    """A food classifier over any image network.

    Parameters
    ----------
    classes : sequence of str
        Names of the classes; those of the training photos by default, once :meth:`fit` sees them.
    backbone : str, path-like or nn.Module, default: "embedded:efficientnet-lite0"
        See :func:`~weightsmith_kitchen.photos.backbones.open_backbone`.
    preprocess : Preprocess, optional
        How photos are scaled; by default as the backbone was trained.
    foods : mapping of str to str, optional
        From class to the plain name of its food; by default the class in lower case, with blanks.

    Attributes
    ----------
    network : FoodNetwork
        Backbone and head.
    temperature : float
        What logits are divided by.
    threshold : float
        Probability of a food below which there is no answer; labels with the same plain name add up.

    Examples
    --------
    >>> classifier = FoodClassifier(["rice", "green-peas"], "inception-v1", preprocess=Preprocess(side=64))
    >>> found = classifier.predict(Image.new("RGB", (80, 60)), topk=2)
    >>> sorted(candidate.food for candidate in found.best.candidates)
    ['green peas', 'rice']
    """

    def __init__(
        self,
        classes: Sequence[str] = (),
        backbone: str | os.PathLike[str] | nn.Module | OpenedBackbone = LITE0,
        *,
        preprocess: Preprocess | None = None,
        foods: Mapping[str, str] | None = None,
    ) -> None:
        opened = backbone if isinstance(backbone, OpenedBackbone) else open_backbone(backbone, preprocess=preprocess)
        self.backbone_name = opened.name
        self.preprocess = preprocess or opened.preprocess
        self.foods = dict(foods or {})
        self.temperature, self.threshold = 1.0, 0.0
        self.network = FoodNetwork(opened.module, opened.features, max(len(classes), 1))
        self.network.to(device_of(opened.module)).eval()
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.classes: tuple[str, ...] = ()
        self._name(classes)

    def fit(
        self,
        train: FoodPhotos,
        validation: FoodPhotos | None = None,
        *,
        stages: Sequence[Stage] = ("probe", "finetune"),
        strength: float = 0.03,
        head_lr: float = 1e-3,
        backbone_lr: float | None = None,
        layer_decay: float = 0.85,
        blocks: int | None = None,
        train_side: int | None = None,
        label_smoothing: float = 0.1,
        optimizer: OptimizerName = "adamw",
        polynomial_decay: bool = False,
        balanced: bool = False,
        augment: bool = True,
        smallest: float = SMALLEST_PART,
        color: float = COLOR,
        average: float = AVERAGE,
        auxiliary: bool = True,
        precision_wanted: float = 0.95,
        workers: int = 0,
        seed: int = 0,
        features: Float[Tensor, "photos features"] | None = None,
        after_step: Callable[[int, float], None] | None = None,
        **options: Unpack[FitOptions],
    ) -> Training:
        """Train on labeled photos, then calibrate the probabilities.

        Parameters
        ----------
        train : FoodPhotos
            Their classes become the classifier's.
        validation : FoodPhotos, optional
            Photos that temperature and threshold are chosen on; by default 15 % of the groups of ``train`` are kept
            back for that. Without any the probabilities are not calibrated, and the classifier never abstains.
        stages : sequence of {"probe", "finetune"}, default: both
            The linear probe trains the head only: the backbone is bit for bit the same afterwards.
        strength : float, default: 0.03
            Of the probe, scikit-learn's C.
        head_lr : float, default: 1e-3
            Learning rate of the head in fine-tuning.
        backbone_lr : float, optional
            Learning rate of the last block. By default 1e-3 for the networks that come with the package, and 3e-5 for
            others, which may be transformers.
        layer_decay : float, default: 0.85
            Factor of the learning rate from each block to the one before.
        blocks : int, optional
            Fine-tune only so many last blocks.
        train_side : int, optional
            Pixels of the photos in fine-tuning. By default four fifths of those in predictions, for the networks that
            come with the package: random parts of photos show objects larger, and the sizes agree again (Touvron et
            al., 2019, arXiv:1906.06423), at two thirds of the cost. Other backbones may read one size only: theirs is
            that of predictions.
        label_smoothing : float, default: 0.1
            Of the fine-tuning loss.
        optimizer : {"adamw", "sgd"}, default: "adamw"
            SGD has momentum 0.9.
        polynomial_decay : bool, default: False
            The paper's schedule; pass ``scheduler="constant", warmup=0`` with it.
        balanced : bool, default: False
            Train on every class alike, however many photos it has.
        augment : bool, default: True
            Fine-tune on random parts of the photos, mirrored at random, in changed colors.
        smallest : float, default: 0.3
            Smallest share of a photo's area that such a part has.
        color : float, default: 0.3
            Brightness, contrast and saturation change by factors from ``1 - color`` to ``1 + color``. Smaller where
            the color tells the classes apart.
        average : float, default: 0.99
            Decay per step of the moving average of the weights that fine-tuning returns; 0 returns the last weights.
        auxiliary : bool, default: True
            Train Inception-v1 with its two auxiliary heads; other backbones have none.
        precision_wanted : float, default: 0.95
            Share of answers that are right, on the validation photos; the classifier abstains below the confidence
            that gives it.
        workers : int, default: 0
            Processes that decode photos.
        seed : int, default: 0
            Of the order, the augmentation and the photos kept back.
        features : Tensor, optional
            Features of the training photos, if the caller has them; for stage ``"probe"`` alone.
        after_step : callable, optional
            ``after_step(step, loss)`` after every step of fine-tuning.
        **options
            Epochs, batch size and more of :class:`weightsmith.core.training.FitOptions`. Defaults here: 10 epochs, 32
            photos, weight decay 0.01, a cosine schedule with a warm-up of 5 %. The learning rates are the two above.

        Raises
        ------
        PhotoError
            If a photo cannot be read, there are fewer than two classes, or validation has labels that are not trained.
        ModelError
            If a stage or a rate is unknown or out of range.
        NonFiniteError
            If the loss becomes NaN or infinite; the network is then as before the stage.
        """
        if not stages or not set(stages) <= {"probe", "finetune"}:
            raise ModelError("stages", found=list(stages) or "none", expected="probe, finetune or both")
        if train.num_classes < 2:
            raise PhotoError("training photos", found=f"{train.num_classes} classes", expected="two or more")
        used = train
        if validation is None:
            used, validation, kept = _kept_back(train, seed)
            features = features[kept] if features is not None else None
        elif len(validation):
            validation = FoodPhotos(validation.examples, train.classes)
        if train.classes != self.classes or type(self.network) is not FoodNetwork:
            self._name(train.classes)
            self._new_head()
        probe = None
        if "probe" in stages:
            if features is None:
                features = self.features(used, workers=workers)
            targets = torch.from_numpy(used.targets)
            probe = fit_probe(features, targets, len(self.classes), strength=strength, balanced=balanced)
            with torch.no_grad():
                self.network.head.weight.copy_(probe.weight)
                self.network.head.bias.copy_(probe.bias)
        finetuned = None
        if "finetune" in stages:
            finetuned = finetune(
                self.network,
                used,
                replace(self.preprocess, side=train_side or self._train_side()),
                head_lr=head_lr,
                backbone_lr=self._backbone_lr() if backbone_lr is None else backbone_lr,
                layer_decay=layer_decay,
                blocks=blocks,
                label_smoothing=label_smoothing,
                optimizer=optimizer,
                polynomial_decay=polynomial_decay,
                balanced=balanced,
                augment=augment,
                smallest=smallest,
                color=color,
                average=average,
                auxiliary=auxiliary,
                workers=workers,
                seed=seed,
                after_step=after_step,
                options=cast(FitOptions, {**FINETUNE, **options}),
            )
            self.network.eval()
        self.temperature, self.threshold, report = 1.0, 0.0, None
        if len(validation):
            report = self.calibrate(validation, precision_wanted=precision_wanted, workers=workers)
        return Training(
            len(used),
            len(validation),
            len(self.classes),
            probe,
            finetuned,
            self.temperature,
            self.threshold,
            report,
        )

    def calibrate(self, photos: FoodPhotos, *, precision_wanted: float = 0.95, workers: int = 0) -> Evaluation:
        """Choose the temperature, and the threshold that gives a wanted precision, on photos not trained on."""
        targets = torch.from_numpy(photos.targets)
        logits = self.logits(photos, workers=workers)
        self.temperature = fit_temperature(logits, targets)
        probabilities = torch.softmax(logits.float() / self.temperature, 1)
        foods = self._food_columns()
        by_food = _summed(probabilities, foods)
        self.threshold = abstain_threshold(by_food, foods[targets], precision=precision_wanted)
        return self._evaluation(probabilities, targets, (1, 5))

    def predict(
        self,
        photo: PhotoSource,
        boxes: Sequence[Sequence[float]] | np.ndarray | None = None,
        *,
        topk: int = 5,
        normalized: bool = False,
        overlap: float = 0.5,
        views: Views = "one",
    ) -> Recognition:
        """Recognize the food of a photo, or of each box in it.

        Parameters
        ----------
        photo : path-like, bytes, binary file or Image
            See :func:`~weightsmith_kitchen.photos.images.open_photo`.
        boxes : sequence of boxes or array of shape (boxes, 4), optional
            (xmin, ymin, xmax, ymax) in pixels of the upright photo. Of boxes with the same food that overlap, the most
            probable is kept.
        topk : int, default: 5
            Candidates for each.
        normalized : bool, default: False
            The boxes are shares of the photo's sides.
        overlap : float, default: 0.5
            Intersection over union above which two boxes are one food.
        views : {"one", "flips", "ten"}, default: "one"
            Average the logits over the mirrored photo as well (twice the time) or over ten crops (ten times); see
            :meth:`~weightsmith_kitchen.photos.preprocess.Preprocess.views`.

        Raises
        ------
        PhotoError
            If the photo or a box cannot be used.
        """
        self._require_classes()
        name = name_of(photo)
        image = open_photo(photo, side=self.preprocess.decode_side() if boxes is None else None)
        places: list[Box | None] = [None]
        if boxes is not None:
            if not len(boxes):
                raise PhotoError(f"boxes of {name}", found="an empty list", do="Leave boxes out for the whole photo.")
            size = original_size(image)
            listed = boxes.tolist() if isinstance(boxes, np.ndarray) else boxes
            places = [as_box(box, size, normalized=normalized, name=name) for box in listed]
        probabilities = self.probabilities(self._image_logits(image, places, views))
        regions = [self._region(row, box, topk) for row, box in zip(probabilities, places, strict=True)]
        if boxes is not None:
            kept = nms(
                [box for box in places if box is not None],
                [region.probability for region in regions],
                [region.candidates[0].food for region in regions],
                threshold=overlap,
            )
            regions = [regions[place] for place in kept]
        return Recognition(name, tuple(regions))

    def evaluate(
        self, photos: FoodPhotos, *, topk: Sequence[int] = (1, 5), views: Views = "one", workers: int = 0
    ) -> Evaluation:
        """Compare answers with the labels of photos; ``views`` as of :meth:`predict`.

        Raises
        ------
        PhotoError
            If there are none, or one has a label that is not a class.
        """
        photos = FoodPhotos(photos.examples, self.classes)
        probabilities = self.probabilities(self.logits(photos, views=views, workers=workers))
        return self._evaluation(probabilities, torch.from_numpy(photos.targets), topk)

    def probabilities(self, logits: Float[Tensor, "photos classes"]) -> Float[Tensor, "photos classes"]:
        """Calibrated probabilities of logits, in float32 whatever the precision of the network."""
        return torch.softmax(logits.float() / self.temperature, dim=1)

    def logits(self, photos: FoodPhotos, *, views: Views = "one", workers: int = 0) -> Float[Tensor, "photos classes"]:
        """Logits of photos, in float32 on the CPU; ``views`` as of :meth:`predict`."""
        self._require_classes()
        return self._run(photos, self.network, workers, views)

    def features(self, photos: FoodPhotos, *, workers: int = 0) -> Float[Tensor, "photos features"]:
        """Pooled features of photos, without augmentation, in float32 on the CPU."""
        return self._run(photos, self.network.features, workers)

    def save_pretrained(
        self,
        out: str | os.PathLike[str],
        *,
        weights: Literal["all", "changed"] = "all",
        dtype: torch.dtype | None = None,
        files: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a folder in the layout of Hugging Face; see :func:`~weightsmith_kitchen.photos.storage.save`."""
        parts = Parts(
            self.network,
            self.backbone_name,
            self.classes,
            self.preprocess,
            self.foods,
            self.temperature,
            self.threshold,
        )
        save(parts, out, weights=weights, dtype=dtype, files=files, overwrite=overwrite)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, backbone: nn.Module | None = None) -> FoodClassifier:
        """Read a folder that :meth:`save_pretrained` wrote; see :func:`~weightsmith_kitchen.photos.storage.load`."""
        parts = load(path, backbone=backbone)
        features = parts.network.head.in_features
        opened = OpenedBackbone(parts.backbone, parts.network.backbone, features, parts.preprocess)
        found = cls(parts.classes, opened, foods=parts.foods)
        found.network = parts.network.eval()
        found.temperature, found.threshold = parts.temperature, parts.threshold
        return found

    @classmethod
    def default(cls) -> FoodClassifier:
        """The classifier that comes with the package: 81 groceries and 35 more foods of ImageNet.

        It needs the embedded EfficientNet-Lite0, and abstains on what is no food. How the two label sets are one is
        said in :mod:`weightsmith_kitchen.photos.merged`.

        Examples
        --------
        >>> classifier = FoodClassifier.default()
        >>> len(classifier.classes), classifier.food_of("Arla-Standard-Milk")
        (118, 'whole milk')
        """
        with as_file(files("weightsmith_kitchen.photos").joinpath("data", "default")) as folder:
            return cls.from_pretrained(folder)

    def food_of(self, label: str) -> str:
        """The plain name of a class's food."""
        return self.foods.get(label) or plain_name(label)

    @torch.no_grad()
    def _run(
        self, photos: FoodPhotos, function: Callable[[Tensor], Tensor], workers: int, views: Views = "one"
    ) -> Tensor:
        if not len(photos):
            raise PhotoError("no photos", expected="at least one")
        data = PhotoPixels(photos, self.preprocess, views=views)
        size = BATCH // 8 if views == "ten" else BATCH  # ten times the memory per photo
        loader = DataLoader(data, size, num_workers=workers, collate_fn=collate)
        found = []
        with evaluation_mode(self.network):
            for pixels, _ in track(loader, "reading photos", total=len(loader)):
                found.append(self._averaged(function, pixels))
        return torch.cat(found)

    @torch.no_grad()
    def _image_logits(self, image: Image.Image, places: Sequence[Box | None], views: Views) -> Tensor:
        pixels = torch.stack([torch.stack(self.preprocess.views(image, box, kind=views)) for box in places])
        with evaluation_mode(self.network):
            return self._averaged(self.network, pixels)

    def _averaged(self, function: Callable[[Tensor], Tensor], pixels: Float[Tensor, "N views 3 S S"]) -> Tensor:
        found = function(_channels_last(pixels.flatten(0, 1).to(device_of(self.network))))
        return found.float().unflatten(0, pixels.shape[:2]).mean(1).cpu()

    def _region(self, probabilities: Tensor, box: Box | None, topk: int) -> Region:
        if topk < 1:
            raise PhotoError("topk", found=topk, expected="1 or more")
        ranked = topk_classes(probabilities[None], topk + len(NO_LABELS))[0].tolist()
        candidates = tuple(
            Candidate(self.classes[place], self.food_of(self.classes[place]), float(probabilities[place]))
            for place in ranked
            if self.classes[place] not in NO_LABELS
        )[:topk]
        by_food = _summed(probabilities[None], self._food_columns())[0]
        food = float(by_food[self._food_columns()[self.classes.index(candidates[0].label)]])
        other = {name: float(probabilities[self.classes.index(name)]) for name in NO_LABELS if name in self.classes}
        reason = ""
        if other.get(NOT_FOOD, 0.0) > 0.5:
            reason = f"this does not look like food ({other[NOT_FOOD]:.0%})"
        elif food < self.threshold:
            # Rounded apart, so that the two never read the same.
            least, most = math.floor(1000 * food) / 10, math.ceil(1000 * self.threshold) / 10
            reason = f"not sure: the likeliest food has a probability of {least:.1f} %, one is named from {most:.1f} %"
        return Region(candidates, not reason, food, reason, box)

    def _evaluation(self, probabilities: Tensor, targets: Tensor, topk: Sequence[int]) -> Evaluation:
        foods = self._food_columns()
        confidence = _summed(probabilities, foods)[torch.arange(len(targets)), foods[probabilities.argmax(1)]]
        wanted = sorted({min(k, len(self.classes)) for k in topk})
        return Evaluation.of(
            probabilities, targets, self.classes, topk=wanted, threshold=self.threshold, confidence=confidence
        )

    def _food_columns(self) -> Int[Tensor, "classes"]:
        """The number of every class's food."""
        names = [self.food_of(label) for label in self.classes]
        places = {name: place for place, name in enumerate(dict.fromkeys(names))}
        return torch.tensor([places[name] for name in names])

    def _packaged(self) -> bool:
        return self.backbone_name in (LITE0, INCEPTION)

    def _backbone_lr(self) -> float:
        return 1e-3 if self._packaged() else 3e-5

    def _train_side(self) -> int:
        side = self.preprocess.side
        return max(round(TRAIN_SHARE * side / 16) * 16, min(32, side)) if self._packaged() else side

    def _name(self, classes: Sequence[str]) -> None:
        if len(set(classes)) < len(classes):
            raise ModelError("classes", found=[c for c in classes if list(classes).count(c) > 1][:3], expected="unique")
        self.classes = tuple(classes)

    def _new_head(self) -> None:
        weight = self.network.head.weight
        network = FoodNetwork(self.network.backbone, weight.shape[1], len(self.classes))
        self.network = network.to(weight.device, weight.dtype).eval()

    def _require_classes(self) -> None:
        if not self.classes:
            raise ModelError("the classifier has no classes", do="Name them, or call fit first.")


def plain_name(label: str) -> str:
    """A class's name as words.

    Examples
    --------
    >>> plain_name("Red_Bell-Pepper")
    'red bell pepper'
    """
    return " ".join(label.replace("_", " ").replace("-", " ").split()).lower()


def _summed(probabilities: Tensor, foods: Tensor) -> Tensor:
    """Probabilities of foods, from those of labels."""
    return probabilities.new_zeros(len(probabilities), int(foods.max()) + 1).index_add_(1, foods, probabilities)


def _channels_last(pixels: Tensor) -> Tensor:
    return pixels.contiguous(memory_format=torch.channels_last)  # twice as fast for depthwise convolutions


def _kept_back(photos: FoodPhotos, seed: int) -> tuple[FoodPhotos, FoodPhotos, Tensor]:
    """Training and validation photos; every class that has two groups or more keeps one to train on."""
    labels, groups = [example.label for example in photos], [example.group for example in photos]
    parts = np.array(grouped_split(labels, groups, shares=(1 - HELD_OUT, HELD_OUT, 0.0), seed=seed))
    train, held = np.nonzero(parts == "train")[0], np.nonzero(parts == "validation")[0]
    if not len(held):
        warnings.warn(
            f"too few groups of photos ({len(set(groups))}) to keep one back: the probabilities are not calibrated, "
            "and the classifier never abstains; pass validation photos",
            stacklevel=3,
        )
    return photos.subset(train), photos.subset(held), torch.from_numpy(train)
