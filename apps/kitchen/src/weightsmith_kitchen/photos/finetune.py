r"""The second stage of LP-FT: all or the last blocks of the backbone are trained, early ones with smaller steps.

Block :math:`k` before the last has the learning rate :math:`r \, d^{k}` for a decay :math:`d`. The paper's own way is
SGD with a polynomial schedule, :math:`r_0 (1 - t/T)^{p}`.

What training returns is not the last weights but their exponential moving average over the steps, which is better on
photos of another kind than those that were trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, RandomSampler, WeightedRandomSampler

from weightsmith.core.training import Fit, FitOptions, fit, requires_grad_restored
from weightsmith_kitchen.errors import ModelError, PhotoError
from weightsmith_kitchen.photos.backbones import FoodNetwork, stages_of
from weightsmith_kitchen.photos.folder import FoodPhotos
from weightsmith_kitchen.photos.images import open_photo
from weightsmith_kitchen.photos.inception import AuxiliaryHeads, InceptionV1
from weightsmith_kitchen.photos.preprocess import Preprocess, Views

__all__ = ["PhotoPixels", "finetune", "parameter_groups", "polynomial"]

OptimizerName: TypeAlias = Literal["adamw", "sgd"]
MOMENTUM, POWER = 0.9, 0.5
SMALLEST_PART, COLOR, AVERAGE = 0.3, 0.3, 0.99
"""The smallest part of a photo's area and the change of its colors in training; decay of the average of the weights."""

AUXILIARY_WEIGHT = 0.3
"""Of the loss of each auxiliary head of Inception-v1, as its paper has it."""


class PhotoPixels(Dataset[tuple[Tensor, int]]):
    """Photos as tensors with their classes, decoded when they are asked for.

    Parameters
    ----------
    photos : FoodPhotos
        The examples.
    preprocess : Preprocess
        How they are scaled.
    augment : bool, default: False
        Draw a random part of each, mirrored at random, from PyTorch's generator.
    smallest, color : float
        Of the augmentation; see :meth:`~weightsmith_kitchen.photos.preprocess.Preprocess.augmented`.
    views : {"one", "flips", "ten"}, optional
        Give this many views of each, ``[views, 3, side, side]``, instead of one tensor.
    """

    def __init__(
        self,
        photos: FoodPhotos,
        preprocess: Preprocess,
        *,
        augment: bool = False,
        smallest: float = SMALLEST_PART,
        color: float = COLOR,
        views: Views | None = None,
    ) -> None:
        self.photos, self.preprocess, self.augment = photos, preprocess, augment
        self.smallest, self.color, self.views = smallest, color, views

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        example = self.photos[place]
        # a box may be a small part of its photo, which is then decoded at full size
        side = self.preprocess.decode_side() if example.box is None else None
        image = open_photo(example.photo, side=side, name=example.name)
        target = int(self.photos.targets[place])
        if self.augment:
            drawn = self.preprocess.augmented(
                image, example.box, generator=torch.default_generator, smallest=self.smallest, color=self.color
            )
            return drawn, target
        if self.views is not None:
            return torch.stack(self.preprocess.views(image, example.box, kind=self.views)), target
        return self.preprocess(image, example.box), target


def polynomial(rate: float, step: int, steps: int, *, power: float = POWER) -> float:
    """The learning rate of a step in the paper's schedule.

    Examples
    --------
    >>> [round(polynomial(0.01, step, 72_000), 8) for step in (0, 18_000, 36_000)]
    [0.01, 0.00866025, 0.00707107]
    """
    return float(rate * max(1 - step / steps, 0.0) ** power)


def parameter_groups(
    network: FoodNetwork, *, head_lr: float, backbone_lr: float, layer_decay: float, blocks: int | None
) -> list[dict[str, Any]]:
    """The trained parameters with their learning rates, the head first, then the blocks from the last to the first.

    Parameters
    ----------
    network : FoodNetwork
        The network.
    head_lr, backbone_lr : float
        Learning rates of the head and of the last block.
    layer_decay : float
        Factor of the learning rate from each block to the one before.
    blocks : int, optional
        Train only so many last blocks; all by default.
    """
    stages = stages_of(network.backbone)[::-1][:blocks]
    groups = [{"params": list(network.head.parameters()), "lr": head_lr}]
    groups += [{"params": stage, "lr": backbone_lr * layer_decay**depth} for depth, stage in enumerate(stages)]
    return [group for group in groups if group["params"]]


def finetune(
    network: FoodNetwork,
    photos: FoodPhotos,
    preprocess: Preprocess,
    *,
    head_lr: float,
    backbone_lr: float,
    layer_decay: float,
    blocks: int | None,
    label_smoothing: float,
    optimizer: OptimizerName,
    polynomial_decay: bool,
    balanced: bool,
    augment: bool,
    smallest: float,
    color: float,
    average: float,
    auxiliary: bool,
    workers: int,
    seed: int,
    after_step: Callable[[int, float], None] | None,
    options: FitOptions,
) -> Fit:
    """Train a network in place; see :meth:`~weightsmith_kitchen.photos.classifier.FoodClassifier.fit`.

    Raises
    ------
    PhotoError
        If there are no photos.
    ModelError
        If a rate is negative, or the optimizer unknown.
    NonFiniteError
        If the loss becomes NaN or infinite; the network is restored.
    """
    if not len(photos):
        raise PhotoError("no training photos", expected="at least one of each class")
    if min(head_lr, backbone_lr, layer_decay) < 0 or optimizer not in ("adamw", "sgd"):
        found = {"head_lr": head_lr, "backbone_lr": backbone_lr, "layer_decay": layer_decay, "optimizer": optimizer}
        raise ModelError("options of fine-tuning", found=found, expected="rates >= 0, adamw or sgd")
    if not 0 <= label_smoothing < 1:
        raise ModelError("label_smoothing", found=label_smoothing, expected="a share in [0, 1)")
    if not 0 <= average < 1 or not 0 < smallest <= 1 or not 0 <= color < 1:
        found = {"average": average, "smallest": smallest, "color": color}
        raise ModelError("options of fine-tuning", found=found, expected="shares in [0, 1), smallest in (0, 1]")
    data = PhotoPixels(photos, preprocess, augment=augment, smallest=smallest, color=color)
    order = torch.Generator().manual_seed(seed)
    sampler = _balanced(photos, order) if balanced else RandomSampler(data, generator=order)
    loader: DataLoader[Any] = DataLoader(data, options.get("batch_size", 32), sampler=sampler, num_workers=workers)

    heads = AuxiliaryHeads(photos.num_classes) if auxiliary and isinstance(network.backbone, InceptionV1) else None
    trained = network if heads is None else _WithAuxiliary(network, heads.to(network.head.weight.device))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        pixels, targets = batch
        found = model(pixels.contiguous(memory_format=torch.channels_last))
        weights = (1.0,) if heads is None else (1.0, AUXILIARY_WEIGHT, AUXILIARY_WEIGHT)
        parts = [
            weight * functional.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
            for weight, logits in zip(weights, [found] if heads is None else found, strict=True)
        ]
        return torch.stack(parts).sum()

    with requires_grad_restored(network):
        network.requires_grad_(False)
        groups = parameter_groups(
            network, head_lr=head_lr, backbone_lr=backbone_lr, layer_decay=layer_decay, blocks=blocks
        )
        for group in groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        if heads is not None:
            groups[0]["params"] += list(heads.parameters())
        mean = _MovingAverage(network, average) if average else None
        decay = options.get("weight_decay", 0.0)
        solver: torch.optim.Optimizer = (
            torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=decay, fused=True)
            if optimizer == "sgd"
            else torch.optim.AdamW(groups, weight_decay=decay, fused=True)
        )
        steps = len(loader) * options.get("epochs", 1)
        rates = [float(group["lr"]) for group in groups]

        def stepped(step: int, value: float) -> None:
            if polynomial_decay:
                for group, rate in zip(solver.param_groups, rates, strict=True):
                    group["lr"] = polynomial(rate, step, steps)
            if mean is not None:
                mean.update(step)
            if after_step is not None:
                after_step(step, value)

        run = fit(trained, loader, loss=loss, optimizer=solver, after_step=stepped, seed=seed, **options)
        if mean is not None:
            mean.apply()
        return run


class _WithAuxiliary(nn.Module):
    """Inception-v1 with the heads that only its training needs."""

    def __init__(self, network: FoodNetwork, heads: AuxiliaryHeads) -> None:
        super().__init__()
        self.network, self.heads = network, heads

    def forward(self, pixels: Tensor) -> list[Tensor]:
        backbone = self.network.backbone
        assert isinstance(backbone, InceptionV1)
        features, maps = backbone.features_and_maps(pixels)
        return [self.network.head(backbone.dropout(features)), *self.heads(maps)]


class _MovingAverage:
    """Exponential moving average of the trained parameters; early ones are forgotten faster."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.values: list[Tensor] = []

    @torch.no_grad()
    def update(self, step: int) -> None:
        if not self.values:  # not before: the first step may have moved the parameters to a device
            self.values = [value.clone() for value in self._data()]
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, self._data(), share)

    @torch.no_grad()
    def apply(self) -> None:
        torch._foreach_copy_(self._data(), self.values)

    def _data(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.parameters]


def _balanced(photos: FoodPhotos, generator: torch.Generator) -> WeightedRandomSampler:
    targets = torch.from_numpy(photos.targets)
    counts = torch.bincount(targets, minlength=photos.num_classes).clamp_min(1)
    return WeightedRandomSampler((1.0 / counts)[targets].tolist(), len(photos), generator=generator)
