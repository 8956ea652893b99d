"""A food classifier as a folder in the layout of Hugging Face: ``config.json``, safetensors, a model card."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from weightsmith.core.errors import WeightsmithError
from weightsmith.core.io import atomic_output, load_state_dict, parse_json, write_file
from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.photos.backbones import (
    INCEPTION,
    LITE0,
    FoodNetwork,
    OpenedBackbone,
    open_backbone,
    rebuild,
)
from weightsmith_kitchen.photos.merged import Gate, MergedNetwork
from weightsmith_kitchen.photos.preprocess import Preprocess

__all__ = ["Parts", "load", "save"]

MODEL_TYPE, VERSION = "weightsmith-food", 1
CONFIG, WEIGHTS, PROCESSOR, CARD = "config.json", "model.safetensors", "preprocessor_config.json", "README.md"
BICUBIC = 3


@dataclass(frozen=True)
class Parts:
    """What a classifier consists of.

    Attributes
    ----------
    network : FoodNetwork
        Backbone and head.
    backbone : str
        The backbone's name.
    classes : tuple of str
        Their names.
    preprocess : Preprocess
        How photos are scaled.
    foods : mapping of str to str
        From class to the plain name of its food.
    temperature, threshold : float
        Of the probabilities.
    """

    network: FoodNetwork
    backbone: str
    classes: tuple[str, ...]
    preprocess: Preprocess
    foods: Mapping[str, str]
    temperature: float
    threshold: float


def save(
    classifier: Parts,
    out: str | os.PathLike[str],
    *,
    weights: Literal["all", "changed"] = "all",
    dtype: torch.dtype | None = None,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a classifier as a folder, all or nothing.

    Parameters
    ----------
    classifier : Parts
        With classes.
    out : path-like
        The folder to create.
    weights : {"all", "changed"}, default: "all"
        ``"changed"`` leaves out what is bit for bit that of the embedded network, which is then needed to load it.
    dtype : torch.dtype, optional
        Element type of the stored floating-point weights; their own by default.
    files : mapping of str to str, optional
        More small files: name to text.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Raises
    ------
    ModelError
        If it has no classes, or ``"changed"`` is asked of another backbone than the embedded one.
    CheckpointError
        If ``out`` exists or cannot be written.
    """
    if not classifier.classes:
        raise ModelError("the classifier has no classes", do="Train it first.")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.network.state_dict().items()}
    if weights == "changed":
        if classifier.backbone != LITE0:
            raise ModelError("weights='changed'", found=classifier.backbone, expected=LITE0)
        opened = open_backbone(LITE0)
        own = opened.module.state_dict()
        known = {f"{part}backbone.{name}": tensor for part in ("", "tuned.") for name, tensor in own.items()}
        if opened.head is not None:
            known |= {f"image_head.{name}": tensor for name, tensor in opened.head.state_dict().items()}
        state = {
            name: tensor for name, tensor in state.items() if name not in known or not torch.equal(known[name], tensor)
        }
    if dtype is not None:
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    config = {
        "architectures": ["FoodClassifier"],
        "model_type": MODEL_TYPE,
        "version": VERSION,
        "id2label": {str(place): label for place, label in enumerate(classifier.classes)},
        "label2id": {label: place for place, label in enumerate(classifier.classes)},
        "num_labels": len(classifier.classes),
        "hidden_size": classifier.network.head.in_features,
        "backbone": classifier.backbone,
        "backbone_config": _hf_config(classifier.network.backbone),
        "stored_weights": weights,
        **({"gate": classifier.network.gate.to_dict()} if isinstance(classifier.network, MergedNetwork) else {}),
        "preprocess": classifier.preprocess.to_dict(),
        "foods": dict(classifier.foods),
        "temperature": classifier.temperature,
        "threshold": classifier.threshold,
    }
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": classifier.preprocess.side, "width": classifier.preprocess.side},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(classifier.preprocess.mean),
        "image_std": list(classifier.preprocess.std),
    }
    with atomic_output(out, overwrite=overwrite, nbytes=sum(tensor.nbytes for tensor in state.values())) as target:
        save_file(state, str(target / WEIGHTS), metadata={"format": "pt"})
        for name, values in ((CONFIG, config), (PROCESSOR, processor)):
            write_file(target / name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        for name, text in {CARD: _card(classifier, Path(out).name), **(files or {})}.items():
            write_file(target / name, text)


def load(path: str | os.PathLike[str], *, backbone: nn.Module | None = None) -> Parts:
    """Read a folder that :func:`save` wrote.

    Parameters
    ----------
    path : path-like
        The folder.
    backbone : nn.Module, optional
        The network, for a classifier that was saved with a module of the user's own; its weights are replaced.

    Raises
    ------
    ModelError
        If a file is missing or damaged, or the weights do not fit the configuration.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"food classifier {path}", found="no folder there", expected="what save_pretrained wrote")
    try:
        config = parse_json((folder / CONFIG).read_text("utf-8"), f"{folder / CONFIG}")
        stored = load_state_dict(folder / WEIGHTS)
    except (OSError, UnicodeDecodeError, WeightsmithError) as error:
        raise ModelError(f"food classifier {path} cannot be read", found=error, do="Copy it again.") from error
    if config.get("model_type") != MODEL_TYPE or config.get("version") != VERSION:
        found = f"{config.get('model_type')!r}, version {config.get('version')!r}"
        raise ModelError(f"{folder / CONFIG}", found=found, expected=f"{MODEL_TYPE!r}, version {VERSION}")
    classes = _classes(config, folder)
    preprocess = Preprocess.from_dict(config.get("preprocess") or {})
    opened = _backbone(config, preprocess, backbone, folder)
    network = FoodNetwork(opened.module, opened.features, len(classes))
    if "gate" in config:
        if opened.head is None:
            raise ModelError(f"backbone {opened.name} of {folder}", found="no head of its own", expected=LITE0)
        network = MergedNetwork(opened.module, opened.head, Gate.from_dict(config["gate"]))
        if network.labels != tuple(classes):
            raise ModelError(f"{folder / CONFIG}: id2label", found=f"{len(classes)} classes", expected="foods.csv's")
    _fill(network, stored, config.get("stored_weights") == "changed", folder)
    return Parts(
        network,
        opened.name,
        tuple(classes),
        preprocess,
        _foods(config, folder),
        _number(config, "temperature", folder, low=1e-6),
        _number(config, "threshold", folder, low=0.0),
    )


def _backbone(
    config: Mapping[str, Any], preprocess: Preprocess, given: nn.Module | None, folder: Path
) -> OpenedBackbone:
    name, features = config.get("backbone"), config.get("hidden_size")
    if not isinstance(features, int) or not 0 < features <= 2**20:
        raise ModelError(f"{folder / CONFIG}: hidden_size", found=features, expected="a number of features")
    if given is not None:
        opened = open_backbone(given, preprocess=preprocess)
    elif name in (LITE0, INCEPTION):
        opened = open_backbone(name, preprocess=preprocess)
    elif config.get("backbone_config"):
        opened = OpenedBackbone(str(name), rebuild(config["backbone_config"]), features, preprocess)
    else:
        raise ModelError(
            f"backbone {name} of {folder}",
            found="a module of the user's own",
            do="Pass it: FoodClassifier.from_pretrained(path, backbone=module).",
        )
    if opened.features != features:
        raise ModelError(f"features of the backbone of {folder}", found=opened.features, expected=features)
    return opened


def _fill(network: nn.Module, stored: Mapping[str, Tensor], changed: bool, folder: Path) -> None:
    own = network.state_dict()
    unknown = sorted(set(stored) - set(own))
    needed = [
        name for name in own if not changed or not name.startswith(("backbone.", "tuned.backbone.", "image_head."))
    ]
    missing = [name for name in needed if name not in stored]
    if unknown or missing:
        raise ModelError(
            f"weights of {folder}",
            found=f"unknown {unknown[:3]}, missing {missing[:3]}",
            expected="those of config.json",
        )
    for name, tensor in stored.items():
        if tensor.shape != own[name].shape:
            raise ModelError(f"tensor {name!r} of {folder}", found=tuple(tensor.shape), expected=tuple(own[name].shape))
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise ModelError(f"tensor {name!r} of {folder}", found="NaN or infinity", do="Copy it again.")
    with torch.no_grad():
        for name, tensor in stored.items():
            own[name].copy_(tensor)


def _classes(config: Mapping[str, Any], folder: Path) -> list[str]:
    labels = config.get("id2label")
    if not isinstance(labels, dict) or sorted(labels) != sorted(str(place) for place in range(len(labels))):
        raise ModelError(f"{folder / CONFIG}: id2label", found=labels, expected="names of classes 0, 1, ...")
    found = [labels[str(place)] for place in range(len(labels))]
    if not found or not all(isinstance(label, str) for label in found):
        raise ModelError(f"{folder / CONFIG}: id2label", found=labels, expected="one name or more")
    return found


def _foods(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    foods = config.get("foods", {})
    if not isinstance(foods, dict) or not all(isinstance(food, str) for food in foods.values()):
        raise ModelError(f"{folder / CONFIG}: foods", found=foods, expected="class to plain name")
    return foods


def _number(config: Mapping[str, Any], name: str, folder: Path, *, low: float) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < low:
        raise ModelError(f"{folder / CONFIG}: {name}", found=value, expected=f"a number >= {low:g}")
    return float(value)


def _hf_config(backbone: nn.Module) -> dict[str, Any] | None:
    """The configuration of a Hugging Face network, to build it again without its checkpoint."""
    config = getattr(getattr(backbone, "model", None), "config", None)
    if config is None or not hasattr(config, "to_dict"):
        return None
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


def _card(classifier: Parts, name: str) -> str:
    classes = ", ".join(classifier.classes[:20]) + (" ..." if len(classifier.classes) > 20 else "")
    return f"""---
library_name: weightsmith-kitchen
pipeline_tag: image-classification
tags:
- weightsmith
- deepfood
- food
---

# {name}

A classifier of {len(classifier.classes)} foods over `{classifier.backbone}`: {classes}.

It answers where the calibrated probability is {classifier.threshold:.2f} or more (temperature \
{classifier.temperature:.2f}).

    from weightsmith_kitchen import FoodClassifier
    FoodClassifier.from_pretrained("{name}").predict("lunch.jpg", topk=5)

Paper: Liu, Cao, Luo, Chen, Vokkarane and Ma (2016), DeepFood, arXiv:1606.05675.
"""
