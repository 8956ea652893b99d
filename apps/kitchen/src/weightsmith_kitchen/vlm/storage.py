"""A vision-language model as a folder: PEFT's adapter, the projector, a configuration that names the frozen parts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from weightsmith.core.errors import WeightsmithError
from weightsmith.core.io import atomic_output, load_state_dict, read_json, write_file
from weightsmith_kitchen.errors import ModelError
from weightsmith_kitchen.photos.preprocess import Preprocess
from weightsmith_kitchen.vlm.parts import Prefixed

__all__ = ["from_pretrained", "load", "save", "save_pretrained"]

MODEL_TYPE, VERSION = "weightsmith-vision-prefix-lm", 1
CONFIG, CARD = "config.json", "README.md"
PROJECTOR, ADAPTER, ADAPTER_CONFIG = "projector.safetensors", "adapter_model.safetensors", "adapter_config.json"
NUMBER_HEAD = "number_head.safetensors"


def save(model: Prefixed, folder: str | os.PathLike[str]) -> None:
    """Write the adapter as PEFT does, ``projector.safetensors``, and the number head, if there is one."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model.lm, "peft_config"):
        model.lm.save_pretrained(folder)
        (folder / CARD).unlink(missing_ok=True)  # PEFT's template of a card; it says nothing about this model
    for name, module in ((PROJECTOR, model.projector), (NUMBER_HEAD, model.number_head)):
        if module is not None:
            with atomic_output(folder / name, overwrite=True) as path:
                save_file({key: value.contiguous() for key, value in module.state_dict().items()}, path)


def load(model: Prefixed, folder: str | os.PathLike[str]) -> None:
    """Read what `save` wrote; all keys are checked first.

    Raises
    ------
    ModelError
        If keys are missing, unexpected, of another shape or not finite; they are listed, and nothing is changed.
    """
    folder = Path(folder)
    parts: list[tuple[str, dict[str, Tensor]]] = [(PROJECTOR, model.projector.state_dict())]
    if hasattr(model.lm, "peft_config"):
        from peft import get_peft_model_state_dict

        parts.append((ADAPTER, get_peft_model_state_dict(model.lm)))
    elif (folder / ADAPTER).exists():
        raise ModelError(
            f"{folder}", found="an adapter", expected="a model with LoRA", do="Call add_lora() before load()."
        )
    if model.number_head is not None:
        parts.append((NUMBER_HEAD, model.number_head.state_dict()))
    read = []
    for name, own in parts:
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name}", found="no file", expected="what save() wrote")
        try:
            stored = load_state_dict(folder / name)
        except WeightsmithError as error:
            raise ModelError(f"{folder / name} cannot be read", found=error, do="Copy it again.") from error
        missing, unexpected = sorted(own.keys() - stored.keys()), sorted(stored.keys() - own.keys())
        shapes = [key for key in own.keys() & stored.keys() if own[key].shape != stored[key].shape]
        if missing or unexpected or shapes:
            raise ModelError(
                f"{folder / name}",
                found=f"missing: {missing}; unexpected: {unexpected}; other shapes: {sorted(shapes)}",
                expected="exactly the keys of this model",
                do="Add LoRA with the same rank and target modules.",
            )
        broken = [key for key, value in stored.items() if not bool(value.float().isfinite().all())]
        if broken:
            raise ModelError(f"{folder / name}", found=f"NaN or infinity in {broken[:3]}", do="Train it again.")
        read.append((own, stored))
    with torch.no_grad():
        for own, stored in read:
            for key, value in own.items():
                value.copy_(stored[key])


def save_pretrained(
    model: Prefixed, folder: str | os.PathLike[str], *, files: Mapping[str, str], overwrite: bool
) -> None:
    """What `VisionPrefixLM.save_pretrained` does."""
    changed = [name for name, value in model.lm.named_parameters() if value.requires_grad and "lora_" not in name]
    if changed:
        raise ModelError(
            "language model",
            found=f"{len(changed)} trained weights beside LoRA, such as {changed[0]}",
            expected="a frozen one",
            do="Save it with lm.save_pretrained(), and pass lm= when loading.",
        )
    weight = next(model.projector.parameters())
    config = {
        "architectures": ["VisionPrefixLM"],
        "model_type": MODEL_TYPE,
        "version": VERSION,
        **model.names,
        "group": model.group,
        "prompt": model.prompt,
        "max_length": model.max_length,
        "preprocess": model.preprocess.to_dict(),
        "projector": {"in": weight.shape[1], "out": weight.shape[0], "dtype": str(weight.dtype).rpartition(".")[2]},
        "number_head": model.number_head is not None,
    }
    with atomic_output(folder, overwrite=overwrite) as target:
        save(model, target)
        if (target / ADAPTER_CONFIG).is_file() and model.names["lm"] is not None:
            # the embedded model's folder is of this machine only; the name opens it on any
            adapter = {**read_json(target / ADAPTER_CONFIG), "base_model_name_or_path": model.names["lm"]}
            write_file(target / ADAPTER_CONFIG, json.dumps(adapter, indent=2) + "\n")
        write_file(target / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        for name, text in {CARD: _card(model, Path(folder).name), **files}.items():
            write_file(target / name, text)


def from_pretrained(
    kind: Any,
    folder: str | os.PathLike[str],
    *,
    vision: nn.Module | None,
    lm: nn.Module | None,
    tokenizer: Any,
) -> Any:
    """What `VisionPrefixLM.from_pretrained` does."""
    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise ModelError(f"vision-language model {folder}", found=f"no {CONFIG}", expected="what save_pretrained wrote")
    try:
        config = read_json(path / CONFIG)
    except WeightsmithError as error:
        raise ModelError(f"{path / CONFIG}", found=error, do="Copy it again.") from error
    if config.get("model_type") != MODEL_TYPE or config.get("version") != VERSION:
        found = f"{config.get('model_type')!r}, version {config.get('version')!r}"
        raise ModelError(f"{path / CONFIG}", found=found, expected=f"{MODEL_TYPE!r}, version {VERSION}")
    for part, given in (("vision", vision), ("lm", lm)):
        if given is None and not isinstance(config.get(part), str):
            raise ModelError(f"{part} of {folder}", found="a module of the user's own", do=f"Pass {part}=...")
    group, prompt, longest = config.get("group"), config.get("prompt"), config.get("max_length")
    if not isinstance(group, int) or not isinstance(prompt, str) or not isinstance(longest, int):
        raise ModelError(f"{path / CONFIG}", found=f"group {group!r}, prompt {prompt!r}", do="Copy it again.")
    model = kind.from_parts(
        vision if vision is not None else config["vision"],
        lm if lm is not None else config["lm"],
        tokenizer=tokenizer,
        group=group,
        max_length=longest,
        prompt=prompt,
        preprocess=Preprocess.from_dict(config.get("preprocess") or {}),
    )
    dtype = getattr(torch, str((config.get("projector") or {}).get("dtype")), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(f"{path / CONFIG}: projector", found=config.get("projector"), expected="a dtype")
    model.projector.to(dtype)
    if config.get("number_head"):
        model.add_number_head()
    if (path / ADAPTER_CONFIG).is_file():
        adapter = read_json(path / ADAPTER_CONFIG)
        try:
            model.add_lora(
                r=adapter["r"],
                alpha=adapter["lora_alpha"],
                dropout=adapter["lora_dropout"],
                target_modules=sorted(adapter["target_modules"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path / ADAPTER_CONFIG}", found=repr(error), do="Copy it again.") from error
    load(model, path)
    return model.eval()


def _card(model: Prefixed, name: str) -> str:
    trained = sum(value.numel() for value in model.projector.parameters())
    trained += sum(value.numel() for key, value in model.lm.named_parameters() if "lora_" in key)
    return f"""---
library_name: weightsmith-kitchen
pipeline_tag: image-to-text
base_model: {model.names["lm"] or "a module of the user's own"}
tags:
- weightsmith
- caloraify
- food
---

# {name}

Writes a list of foods and amounts about a photo: {trained:,} trained parameters (a projector and, if there is an
adapter, LoRA) between `{model.names["vision"]}` and `{model.names["lm"]}`, which are frozen.

    from weightsmith_kitchen import CalorieEstimator, VisionPrefixLM
    CalorieEstimator(table, reader=VisionPrefixLM.from_pretrained("{name}").reader())("lunch.jpg")

Amounts of photos are weak: compare the error in `report.json`, if it is there, with that of the constant.

Paper: Yao, Yao, Zhou and Zhang (2024), CaLoRAify, arXiv:2412.09936.
"""
