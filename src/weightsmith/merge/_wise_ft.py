r"""WiSE-FT: average a pretrained and a fine-tuned network, for robustness at no cost.

.. math::
    \theta(\alpha) = (1 - \alpha)\,\theta_0 + \alpha\,\theta_1

Fine-tuning raises the accuracy on data like the training data and lowers it out of distribution. The average with the
pretrained network keeps most of the gain and is often better than both networks out of distribution. ``alpha = 0.5``
needs no data; an alpha that was chosen on the out-of-distribution test data is leakage.

Wortsman et al. 2022, arXiv 2109.01903. :func:`weightsmith.merge.bang` fine-tunes such that the average is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import LayerNotFoundError
from weightsmith.core.io import CheckpointReader, StateDict
from weightsmith.core.results import Result
from weightsmith.merge._shared.arithmetic import check_alpha, interpolation
from weightsmith.merge._shared.merging import check_two, merge_checkpoints, merge_state_dicts

__all__ = ["HEADS", "Head", "head_patterns", "interpolate", "wise_ft"]

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
    alpha: float = 0.5,
    *,
    skip: Sequence[str] = (),
    head: Head = "average",
    head_names: Sequence[str] = HEADS,
) -> dict[str, Tensor]:
    """Average two state dicts, ``(1 - alpha) * start + alpha * end``.

    Parameters
    ----------
    start, end : state dict
        The pretrained and the fine-tuned network.
    alpha : float, default: 0.5
        0 is ``start``, 1 is ``end``, bit by bit. Outside [0, 1] the line is extrapolated, with a warning.
    skip : sequence of str
        Shell patterns of names that are taken from ``end`` unchanged.
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
        If ``alpha`` is not finite.
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
    keep = [*skip, *head_patterns(head, head_names, end)]
    return merge_state_dicts([start, end], interpolation(check_alpha(alpha)), keep=keep)


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

    Memory does not depend on the size of the checkpoints: they are read and written in chunks.

    Parameters
    ----------
    checkpoints : sequence of path
        BASE TUNED: folders or files of the pretrained network and of the one fine-tuned from it.
    out : path
        Folder for the average; config, tokenizer and other small files come from TUNED.
    alpha : float, default: 0.5
        0 is BASE, 1 is TUNED. Do not choose it on the out-of-distribution test data.
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
    ...     print(CheckpointReader(paths[2]).tensor("w"), result.totals["weights"])
    tensor([2.]) 1
    """
    check_two(checkpoints)
    tensor_map = interpolation(check_alpha(alpha))
    keep = head_patterns(head, head_names, CheckpointReader(checkpoints[1]).specs)
    hyper = {"alpha": alpha, "head": head, "head_names": [*head_names]}
    return merge_checkpoints("wise-ft", checkpoints, out, tensor_map, keep=keep, overwrite=overwrite, hyper=hyper)


def head_patterns(head: Head, names: Sequence[str], tensors: Iterable[str]) -> list[str]:
    """Return the name patterns of what is taken from the fine-tuned network unchanged.

    Raises
    ------
    HyperparameterError
        If ``head`` is unknown.
    LayerNotFoundError
        If no tensor belongs to a head.

    Examples
    --------
    >>> head_patterns("finetuned", ("fc.*",), ["conv.weight", "fc.weight"])
    ['fc.*']
    """
    check_choice("head", head, Head)
    if head == "average":
        return []
    if not any(fnmatchcase(name, pattern) for name in tensors for pattern in names):
        raise LayerNotFoundError("no tensor belongs to a head", found=list(names), do="Name the head with head_names.")
    return list(names)
