"""Networks that turn pixels into features: the embedded EfficientNet-Lite0, Inception-v1, a Hugging Face model, any."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightsmith.core.errors import WeightsmithError
from weightsmith.core.models import device_of, evaluation_mode
from weightsmith.embedded import open_model
from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.photos.inception import InceptionV1
from weightsmith_kitchen.photos.preprocess import Preprocess

__all__ = ["INCEPTION", "LITE0", "FoodNetwork", "OpenedBackbone", "open_backbone", "rebuild", "stages_of"]

LITE0, INCEPTION = "embedded:efficientnet-lite0", "inception-v1"
ALIASES = {
    "efficientnet-lite0": LITE0,
    "efficientnet_lite0": LITE0,
    "inception_v1": INCEPTION,
    "googlenet": INCEPTION,
}
"""Other names that users write."""


@dataclass(frozen=True)
class OpenedBackbone:
    """A network without a head.

    Attributes
    ----------
    name : str
        What :func:`open_backbone` opens it by; the class for a module of the user's own.
    module : nn.Module
        From pixels ``[N, 3, side, side]`` to features ``[N, features]``.
    features : int
        Their number.
    preprocess : Preprocess
        How its inputs are made.
    head : nn.Linear or None
        The head that was taken off.
    """

    name: str
    module: nn.Module
    features: int
    preprocess: Preprocess
    head: nn.Linear | None = None


def open_backbone(
    backbone: str | os.PathLike[str] | nn.Module = LITE0, *, preprocess: Preprocess | None = None
) -> OpenedBackbone:
    """Open a network and take its head off.

    Parameters
    ----------
    backbone : str, path-like or nn.Module
        ``"embedded:efficientnet-lite0"`` (ImageNet weights), ``"inception-v1"`` (random weights), a folder or hub id of
        a Hugging Face image classifier, or a module that returns features ``[N, features]``.
    preprocess : Preprocess, optional
        How inputs are made; by default as the network was trained.

    Raises
    ------
    ModelError
        If there is no such network, or it does not return features of images.

    Examples
    --------
    >>> opened = open_backbone("inception-v1")
    >>> opened.features, sum(p.numel() for p in opened.module.parameters())
    (1024, 5973552)
    """
    if isinstance(backbone, nn.Module):
        chosen = preprocess or Preprocess()
        return OpenedBackbone(type(backbone).__name__, backbone, _features(backbone, chosen), chosen)
    name = ALIASES.get(str(backbone).lower(), str(backbone))
    if name == INCEPTION:
        network = InceptionV1()
        last = network.fc
        network.set_submodule("fc", nn.Identity())
        # zero mean and a deviation of about one, where Caffe only subtracted the mean
        chosen = preprocess or Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        return OpenedBackbone(name, network, last.in_features, chosen, last)
    if name != LITE0 and not Path(name).is_dir() and name.startswith(("embedded:", "/", ".")):
        raise ModelError(f"backbone {name}", found="nothing there", expected=f"{LITE0}, {INCEPTION} or a folder")
    try:
        opened = open_model(name)
    except WeightsmithError as error:
        raise ModelError(f"backbone {name} cannot be opened", found=error) from error
    if name == LITE0:
        head = opened.model.get_submodule("_fc")
        assert isinstance(head, nn.Linear)
        opened.model.set_submodule("_fc", nn.Identity())
        _pad_inside(opened.model)
        return OpenedBackbone(name, opened.model, head.in_features, preprocess or Preprocess(), head)
    path, head = _last_linear(opened.model, name)
    opened.model.set_submodule(path, nn.Identity())
    chosen = preprocess or Preprocess.of_processor(opened.processor)
    headless = _Logits(opened.model)
    return OpenedBackbone(name, headless, _features(headless, chosen), chosen, head)


def rebuild(config: Mapping[str, Any]) -> nn.Module:
    """A Hugging Face image network without its head, with random weights, from its configuration.

    Raises
    ------
    ModelError
        If transformers knows no such network.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    try:
        values = {name: value for name, value in config.items() if name != "model_type"}
        model = AutoModelForImageClassification.from_config(AutoConfig.for_model(config["model_type"], **values))
    except (KeyError, ValueError, TypeError, AttributeError, ImportError) as error:
        raise ModelError("backbone_config", found=error, do="Copy config.json again.") from error
    path, _ = _last_linear(model, str(config["model_type"]))
    model.set_submodule(path, nn.Identity())
    return _Logits(model)


class FoodNetwork(nn.Module):
    """A backbone and a linear head; frozen parts stay in evaluation mode while the rest is trained.

    Batch normalization of a frozen stage would otherwise still update its running statistics, and a probe trained on
    the old ones would read other features.

    Parameters
    ----------
    backbone : nn.Module
        From pixels to features ``[N, features]``.
    features, classes : int
        Inputs and outputs of the head.
    """

    def __init__(self, backbone: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(features, classes)

    def features(self, pixels: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch features"]:
        """What the head reads."""
        found: Tensor = self.backbone(pixels)
        return found.flatten(1)

    def forward(self, pixels: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch classes"]:
        """Logits of images."""
        logits: Tensor = self.head(self.features(pixels))
        return logits

    def train(self, mode: bool = True) -> FoodNetwork:
        """Put what is trained in training mode; modules without a trained parameter, and all normalization, stay.

        Fine-tuning batches are small and of few plates: their statistics are worse than those of pretraining, so
        normalization keeps its own, while its scale and shift may be trained.
        """
        super().train(mode)
        if mode:
            _quiet(self.backbone)
        return self


def stages_of(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters in groups from the input to the output: one group per block.

    A block is a member of a numbered list of modules, or a module beside such lists; the order is that of definition.

    Examples
    --------
    >>> len(stages_of(open_backbone("inception-v1").module)), len(stages_of(nn.Linear(2, 2)))
    (12, 1)
    """
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in backbone.named_parameters():
        path = name.split(".")[:-1]
        number = next((place for place, part in enumerate(path) if part.isdigit()), None)
        key = ".".join(path if number is None else path[: number + 1])
        if number is None and len(path) > 1:
            key = ".".join(path[:-1])
        groups.setdefault(key, []).append(parameter)
    return list(groups.values())


class _Logits(nn.Module):
    """A Hugging Face classifier without its last layer: its logits are the features."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.model(pixel_values=pixels).logits
        return found.flatten(1)


def _pad_inside(model: nn.Module) -> None:
    """Let convolutions pad by themselves where all four sides are padded alike: the same sums, a fifth faster."""
    for part in model.modules():
        pad = getattr(part, "static_padding", None)
        if isinstance(part, nn.Conv2d) and isinstance(pad, nn.ZeroPad2d) and len(set(pad.padding)) == 1:
            part.padding = (pad.padding[0], pad.padding[0])
            part.static_padding = nn.Identity()


def _quiet(module: nn.Module) -> None:
    norm = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    for part in module.modules():
        if isinstance(part, norm):
            part.training = False
    for part in module.children():
        own = list(part.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            part.eval()
        else:
            _quiet(part)


def _last_linear(model: nn.Module, name: str) -> tuple[str, nn.Linear]:
    classes = getattr(getattr(model, "config", None), "num_labels", None)
    found = [
        (path, part)
        for path, part in model.named_modules()
        if isinstance(part, nn.Linear) and (classes is None or part.out_features == classes)
    ]
    if not found or "image" not in type(model).__name__.lower():
        raise ModelError(
            f"backbone {name}", found=type(model).__name__, expected="an image classifier with a linear head"
        )
    return found[-1]


def _features(backbone: nn.Module, preprocess: Preprocess) -> int:
    """The number of features of a network, found by running it on a grey image."""
    pixels = torch.zeros(1, 3, preprocess.side, preprocess.side, device=device_of(backbone))
    with torch.no_grad(), evaluation_mode(backbone):
        try:
            found: Any = backbone(pixels)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"backbone {type(backbone).__name__} fails on images of {preprocess.side} pixels", found=str(error)
            ) from error
    if isinstance(found, Mapping) or not isinstance(found, Tensor) or found.ndim < 2 or len(found) != 1:
        raise ModelError(
            f"output of backbone {type(backbone).__name__}",
            found=tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__,
            expected="features of shape (photos, features)",
        )
    return found.flatten(1).shape[1]
