r"""WiSE-FT of a LoRA adapter: the average with the base is the adapter scaled by alpha.

.. math:: (1 - \alpha) W + \alpha (W + B A) = W + (\alpha B) A
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from weightsmith.core.errors import CheckpointError, HyperparameterError, UnsupportedModelError
from weightsmith.core.io import StateDict, atomic_output, copy_aux_files, load_state_dict, read_json, write_file
from weightsmith.core.linalg import upcast
from weightsmith.core.outputs import writes
from weightsmith.core.results import Result, documents, record
from weightsmith.merge._shared.arithmetic import check_alpha

__all__ = ["scale_adapter"]


@writes("an adapter")
def scale_adapter(checkpoints: Sequence[Path], out: Path, *, alpha: float = 0.5, overwrite: bool = False) -> Result:
    """Average a LoRA-tuned network with its base, by scaling the adapter by alpha.

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
        One row per scaled matrix, with its norm.

    Raises
    ------
    HyperparameterError
        If there is not one folder, or ``alpha`` is not finite.
    CheckpointError
        If it is not the folder of an adapter.
    UnsupportedModelError
        If the adapter is not LoRA, is DoRA, changes the base when it is loaded (PiSSA, OLoRA, CorDA, LoftQ), or holds
        weights that are not updates (biases, whole modules): average the merged network with the base by
        :func:`weightsmith.merge.wise_ft`.

    References
    ----------
    Wortsman et al. "Robust fine-tuning of zero-shot models". CVPR 2022. arXiv:2109.01903.
    """
    if len(checkpoints) != 1:
        raise HyperparameterError("checkpoints", found=len(checkpoints), expected="one adapter folder")
    check_alpha(alpha)
    folder = Path(checkpoints[0])
    with record("scale-adapter", alpha=alpha) as result:
        tensors = load_state_dict(folder)
        _check_lora(folder, tensors)
        scaled = {}
        for name, tensor in tensors.items():
            scaled[name] = tensor
            if "lora_B" in name or "lora_embedding_B" in name:
                scaled[name] = (upcast(tensor) * alpha).to(tensor.dtype)
                result.layer(name, weights=tensor.numel(), norm=upcast(scaled[name]).norm().item())
        result.totals = {"tensors": len(result.layers), "weights": sum(row["weights"] for row in result.layers)}
        with atomic_output(out, overwrite=overwrite) as target:
            save_file(scaled, target / "adapter_model.safetensors", metadata={"format": "pt"})
            for file, text in documents([result], out, [folder]).items():
                write_file(target / file, text)
            copy_aux_files(folder, target)
    return result


UPDATES = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Initializations that leave the base as it is; others subtract the initial factors from it when they are loaded."""


def _check_lora(folder: Path, tensors: StateDict) -> None:
    if not (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"no adapter_config.json in {folder}", do="Give the folder of a PEFT adapter.")
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise UnsupportedModelError(f"adapter {folder}", found=kind, expected="LORA", do="Merge it, then use wise-ft.")
    start = config.get("init_lora_weights", True)
    if start not in UPDATES:
        raise UnsupportedModelError(
            f"adapter {folder} changes the base when it is loaded, so that the base is not at alpha 0",
            found=f"init_lora_weights {start!r}",
            expected=" or ".join(map(repr, UPDATES)),
            do="Convert it (path_initial_model_for_weight_conversion of save_pretrained), or merge it and use wise-ft.",
        )
    whole = [name for name in tensors if "lora_" not in name]
    if whole:
        raise UnsupportedModelError(
            f"adapter {folder} holds weights that are not updates", found=whole[:5], do="Merge it, then use wise-ft."
        )
