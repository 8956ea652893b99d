r"""WiSE-FT: average a pretrained and a fine-tuned network, for robustness at no cost.

.. math::
    \theta(\alpha) = (1 - \alpha)\,\theta_0 + \alpha\,\theta_1

Fine-tuned networks gain on data like their own and lose on data that drifted; the average with the network they
started from keeps most of the gain and often beats both on the drifted data. The blind choice is ``alpha = 0.5``:
an alpha that was chosen on the drifted test data is leakage.

Wortsman et al. 2022, arXiv 2109.01903. How to fine-tune so that the average is better still: see
:mod:`weightsmith.merge._bang`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeAlias

from safetensors.torch import save_file
from torch import Tensor

from weightsmith.core.errors import CheckpointError, HyperparameterError, LayerNotFoundError, UnsupportedModelError
from weightsmith.core.io import (
    CheckpointReader,
    StateDict,
    atomic_output,
    carry_companions,
    load_state_dict,
    merge_folders,
    merge_state_dicts,
)
from weightsmith.core.results import Result, record
from weightsmith.merge._soup import check_two, interpolation, wide

__all__ = ["HEADS", "Head", "check_alpha", "head_patterns", "interpolate", "scale_adapter", "wise_ft"]

Head: TypeAlias = Literal["average", "finetuned"]

HEADS = (
    "classifier.*",
    "*.classifier.*",
    "score.*",
    "head.*",
    "*.head.*",
    "heads.*",
    "fc.*",
    "lm_head.*",
    "qa_outputs.*",
)
"""Names of classification heads in the usual libraries."""


def interpolate(
    start: StateDict,
    end: StateDict,
    t: float = 0.5,
    *,
    skip: Sequence[str] = (),
    head: Head = "average",
    head_names: Sequence[str] = HEADS,
) -> dict[str, Tensor]:
    """Average two state dicts, ``(1 - t) * start + t * end``.

    Parameters
    ----------
    start, end : state dict
        The pretrained and the fine-tuned network.
    t : float, default: 0.5
        0 is ``start``, 1 is ``end``, bit by bit. Outside [0, 1] the line is extrapolated, with a warning.
    skip : sequence of str
        Shell patterns on names that are taken from ``end`` as they are.
    head : {"average", "finetuned"}, default: "average"
        "finetuned" takes the head from ``end``: for a start whose head is random, missing or of another size.
    head_names : sequence of str
        Shell patterns of the head's names.

    Returns
    -------
    dict of str to Tensor
        With the element types of ``end``; integers such as ``num_batches_tracked`` are those of ``end``. Running
        statistics of batch normalisation are averaged, which is a guess: re-estimate them with
        :func:`weightsmith.core.models.recalibrate_batchnorm`.

    Raises
    ------
    ShapeError
        If names or shapes differ.
    NonFiniteError
        If a tensor holds NaN or infinity.
    HyperparameterError
        If ``t`` is not finite.
    LayerNotFoundError
        If ``head="finetuned"`` finds no head.

    References
    ----------
    Wortsman et al. "Robust fine-tuning of zero-shot models". CVPR 2022. arXiv:2109.01903.

    Examples
    --------
    >>> import torch
    >>> interpolate({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}, 0.25)
    {'w': tensor([1.5000])}
    """
    check_alpha("t", t)
    keep = [*skip, *head_patterns(head, head_names, end)]
    return merge_state_dicts([start, end], interpolation(t), keep=keep)


def wise_ft(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    alpha: float = 0.5,
    head: Head = "average",
    head_names: Sequence[str] = HEADS,
    overwrite: bool = False,
) -> Result:
    """Average a pretrained and a fine-tuned checkpoint on disk.

    Memory does not depend on the size of the checkpoints: they are read and written in pieces.

    Parameters
    ----------
    checkpoints : sequence of path
        BASE TUNED: folders or files of the pretrained network and of the one fine-tuned from it.
    out : path
        Folder for the average; config, tokenizer and other small files come from TUNED.
    alpha : float, default: 0.5
        0 is BASE, 1 is TUNED. Do not choose it on the test data whose drift you want to withstand.
    head : {"average", "finetuned"}, default: "average"
        "finetuned" takes the head from TUNED: for a BASE whose head is random, missing or of another size.
    head_names : sequence of str
        Shell patterns of the head's names.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Returns
    -------
    Result
        Counts of tensors and weights; a note names what was not averaged.

    Raises
    ------
    HyperparameterError
        If there are not two checkpoints, or ``alpha`` is not finite.
    CheckpointError, ShapeError, NonFiniteError, UnsupportedModelError, LayerNotFoundError
        If the checkpoints do not fit; nothing is written.

    References
    ----------
    Wortsman et al. "Robust fine-tuning of zero-shot models". CVPR 2022. arXiv:2109.01903.

    Examples
    --------
    >>> import tempfile, torch
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [Path(folder) / name for name in ("base.safetensors", "tuned.safetensors", "out.safetensors")]
    ...     for path, value in zip(paths, (1.0, 3.0)):
    ...         save_file({"w": torch.tensor([value])}, path)
    ...     result = wise_ft(paths[:2], paths[2])
    ...     print(load_state_dict(paths[2]), result.totals["weights"])
    {'w': tensor([2.])} 1
    """
    check_two(checkpoints)
    check_alpha("alpha", alpha)
    with record("wise-ft", alpha=alpha, head=head) as result:
        keep = head_patterns(head, head_names, CheckpointReader(checkpoints[1]).specs)
        merged = merge_folders(checkpoints, out, interpolation(alpha), keep=keep, overwrite=overwrite)
        result.totals = merged.totals
        if merged.kept:
            few = ", ".join(merged.kept[:5]) + (", ..." if len(merged.kept) > 5 else "")
            result.notes.append(f"Taken from the fine-tuned network as they are: {few}")
    return result


def scale_adapter(checkpoints: Sequence[Path], out: Path, *, alpha: float = 0.5, overwrite: bool = False) -> Result:
    """Average a LoRA-tuned network with its base: the adapter alone, scaled by alpha.

    The base is frozen, so ``(1 - alpha) W + alpha (W + B A) = W + (alpha B) A``, exactly.

    Parameters
    ----------
    checkpoints : sequence of path
        One folder of a LoRA adapter, as ``save_pretrained`` of PEFT writes it.
    out : path
        Folder for the scaled adapter.
    alpha : float, default: 0.5
        0 is the base, 1 is the tuned network.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Returns
    -------
    Result
        One row a scaled matrix, with its norm.

    Raises
    ------
    HyperparameterError
        If there is not one folder, or ``alpha`` is not finite.
    CheckpointError
        If it is not the folder of an adapter.
    UnsupportedModelError
        If the adapter is not LoRA, is DoRA, or holds weights that are no update (biases, whole modules): those have
        to be averaged with the base, by :func:`wise_ft` on the merged networks.

    References
    ----------
    Wortsman et al. "Robust fine-tuning of zero-shot models". CVPR 2022. arXiv:2109.01903.
    """
    if len(checkpoints) != 1:
        raise HyperparameterError("checkpoints", found=len(checkpoints), expected="one adapter folder")
    check_alpha("alpha", alpha)
    folder = Path(checkpoints[0])
    with record("scale-adapter", alpha=alpha) as result:
        tensors = load_state_dict(folder)
        _check_lora(folder, tensors)
        scaled = {}
        for name, tensor in tensors.items():
            scaled[name] = tensor
            if "lora_B" in name or "lora_embedding_B" in name:
                scaled[name] = (wide(tensor) * alpha).to(tensor.dtype)
                result.layer(name, weights=tensor.numel(), norm=wide(scaled[name]).norm().item())
        with atomic_output(out, overwrite=overwrite) as target:
            save_file(scaled, target / "adapter_model.safetensors", metadata={"format": "pt"})
            carry_companions(folder, target)
        result.totals = {"tensors": len(result.layers), "weights": sum(row["weights"] for row in result.layers)}
    return result


def check_alpha(name: str, value: float) -> None:
    """Refuse what is no number; warn of extrapolation.

    Raises
    ------
    HyperparameterError
        If the value is not finite.
    """
    if not math.isfinite(value):
        raise HyperparameterError(name, found=value, expected="a number, usually in [0, 1]")
    if not 0 <= value <= 1:
        warnings.warn(f"{name} = {value} lies outside [0, 1]: the line is extrapolated", stacklevel=3)


def head_patterns(head: Head, names: Sequence[str], tensors: Iterable[str]) -> list[str]:
    """The name patterns of what is taken from the fine-tuned network as it is.

    Raises
    ------
    LayerNotFoundError
        If no tensor is a head's.

    Examples
    --------
    >>> head_patterns("finetuned", ("fc.*",), ["conv.weight", "fc.weight"])
    ['fc.*']
    """
    if head == "average":
        return []
    if not any(fnmatchcase(name, pattern) for name in tensors for pattern in names):
        raise LayerNotFoundError("no tensor is a head's", found=list(names), do="Name the head with head_names.")
    return list(names)


def _check_lora(folder: Path, tensors: StateDict) -> None:
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no adapter_config.json in {folder}", do="Give the folder of a PEFT adapter.") from error
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise UnsupportedModelError(f"adapter {folder}", found=kind, expected="LORA", do="Merge it, then use wise-ft.")
    whole = [name for name in tensors if "lora_" not in name]
    if whole:
        raise UnsupportedModelError(
            f"adapter {folder} holds weights that are no update", found=whole[:5], do="Merge it, then use wise-ft."
        )
