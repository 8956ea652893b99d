r"""The second stage of LP-FT: all or the last blocks of the backbone are trained, early ones with smaller steps.

Block :math:`k` before the last has the learning rate :math:`r \, d^{k}` for a decay :math:`d`. The paper's own way is
SGD with a polynomial schedule, :math:`r_0 (1 - t/T)^{p}`.
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
from weightsmith_kitchen.photos.preprocess import Preprocess

__all__ = ["PhotoPixels", "finetune", "parameter_groups", "polynomial"]

OptimizerName: TypeAlias = Literal["adamw", "sgd"]
MOMENTUM, POWER = 0.9, 0.5


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
    """

    def __init__(self, photos: FoodPhotos, preprocess: Preprocess, *, augment: bool = False) -> None:
        self.photos, self.preprocess, self.augment = photos, preprocess, augment

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        example = self.photos[place]
        # a box may be a small part of its photo, which is then decoded at full size
        side = self.preprocess.decode_side() if example.box is None else None
        image = open_photo(example.photo, side=side, name=example.name)
        target = int(self.photos.targets[place])
        if self.augment:
            return self.preprocess.augmented(image, example.box, generator=torch.default_generator), target
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
    data = PhotoPixels(photos, preprocess, augment=augment)
    order = torch.Generator().manual_seed(seed)
    sampler = _balanced(photos, order) if balanced else RandomSampler(data, generator=order)
    loader: DataLoader[Any] = DataLoader(data, options.get("batch_size", 32), sampler=sampler, num_workers=workers)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        pixels, targets = batch
        logits = model(pixels.contiguous(memory_format=torch.channels_last))
        return functional.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)

    with requires_grad_restored(network):
        network.requires_grad_(False)
        groups = parameter_groups(
            network, head_lr=head_lr, backbone_lr=backbone_lr, layer_decay=layer_decay, blocks=blocks
        )
        for group in groups:
            for parameter in group["params"]:
                parameter.requires_grad_(True)
        decay = options.get("weight_decay", 0.0)
        solver: torch.optim.Optimizer = (
            torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=decay)
            if optimizer == "sgd"
            else torch.optim.AdamW(groups, weight_decay=decay)
        )
        steps = len(loader) * options.get("epochs", 1)
        rates = [float(group["lr"]) for group in groups]

        def stepped(step: int, value: float) -> None:
            if polynomial_decay:
                for group, rate in zip(solver.param_groups, rates, strict=True):
                    group["lr"] = polynomial(rate, step, steps)
            if after_step is not None:
                after_step(step, value)

        return fit(network, loader, loss=loss, optimizer=solver, after_step=stepped, seed=seed, **options)


def _balanced(photos: FoodPhotos, generator: torch.Generator) -> WeightedRandomSampler:
    targets = torch.from_numpy(photos.targets)
    counts = torch.bincount(targets, minlength=photos.num_classes).clamp_min(1)
    return WeightedRandomSampler((1.0 / counts)[targets].tolist(), len(photos), generator=generator)
