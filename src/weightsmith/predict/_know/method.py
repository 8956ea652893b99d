"""Retrodiction of checkpoints on disk, one tensor at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from weightsmith.core.errors import HyperparameterError
from weightsmith.core.io import CheckpointReader, map_checkpoints
from weightsmith.core.results import Result, documents, record
from weightsmith.predict._know.predictor import KnowPredictor
from weightsmith.predict._know.retrodiction import Retrodiction
from weightsmith.predict._know.routing import NOT_PREDICTED, Routing

__all__ = ["know"]


def know(
    checkpoints: Sequence[Path],
    out: Path,
    *,
    steps: int = 3,
    predictor: str = "ours",
    routing: Routing = "rank",
    predict_frozen: bool = False,
    chunk: int | None = None,
    overwrite: bool = False,
) -> Result:
    """Predict the weights that a larger training set would have given, from five checkpoints of measured forgetting.

    Parameters
    ----------
    checkpoints : sequence of five paths
        Folders or files, **smallest training set first**, the trained network last (see
        :class:`ForgettingTrajectory`, which makes them).
    out : path
        Folder for the predicted network (or a ``.safetensors`` file): an initialization for transfer learning.
        Config and other small files come from the last checkpoint.
    steps : int >= 0, default: 3
        Steps of the recursion; each stands for 1 / ratio times the data: 3 is "8 times" at ratio 0.5.
    predictor : str, default: "ours"
        "ours", "paper", or a folder with the authors' KNOWN_Conv.h5, KNOWN_FC.h5 and KNOWN_Bias.h5.
    routing : {"rank", "kernel_size"}, default: "rank"
        Whether convolutions that are not 3x3 go to the convolution predictor or to the matrix predictor.
    predict_frozen : bool, default: False
        Also predict tensors that never changed.
    chunk : int, optional
        Weights evaluated at a time; the default fits the processor's cache.
    overwrite : bool, default: False
        Replace what is at ``out``.

    Returns
    -------
    Result
        One row per predicted tensor: its kind, weights, ratio of norms and cosine to the trained one.

    Raises
    ------
    HyperparameterError
        If there are not five checkpoints, their order is wrong, or a parameter is out of range.
    CheckpointError, ShapeError, NonFiniteError, UnsupportedModelError
        If the checkpoints cannot be used; nothing is written.

    Notes
    -----
    Peak memory is six times the largest tensor. Running statistics of batch normalization are copied and do not
    fit: call :func:`recalibrate_batchnorm` before using the network without training it.

    References
    ----------
    Jang, Kim, Kim. "Learning from Oblivion: Predicting Knowledge-Overflowed Weights via Retrodiction of Forgetting".
    CVPR 2026. arXiv:2508.05059.

    Examples
    --------
    >>> import tempfile, torch
    >>> from torch import nn
    >>> from weightsmith.predict import ForgettingTrajectory
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    >>> def fit(model, subset):
    ...     with torch.no_grad():
    ...         model[0].weight.mul_(1.01)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stages = ForgettingTrajectory(model, fit, torch.zeros(32)).collect().save(f"{folder}/stages")
    ...     result = know(stages, Path(folder) / "predicted")
    >>> [row["layer"] for row in result.layers]
    ['0.weight']
    """
    if steps < 0:
        raise HyperparameterError("steps", found=steps, expected=">= 0")
    with record(
        "know", steps=steps, predictor=predictor, routing=routing, predict_frozen=predict_frozen, chunk=chunk
    ) as result:
        rules = KnowPredictor.from_pretrained(predictor, chunk=chunk).rules
        readers = [CheckpointReader(path) for path in checkpoints]
        _check_order(readers)
        predict = Retrodiction(
            rules,
            readers,
            steps=steps,
            model=None,
            skip=NOT_PREDICTED,
            routing=routing,
            predict_frozen=predict_frozen,
            overwrite_history=True,
        )

        def files() -> dict[str, str]:
            for key, measures in predict.measures.items():
                result.layer(key, **measures)
            result.notes += predict.notes
            result.totals = {
                "tensors": len(readers[-1]),
                "predicted_tensors": len(result.layers),
                "predicted_weights": sum(row["weights"] for row in result.layers),
            }
            return documents([result], out, checkpoints)

        # one worker: each would hold five whole tensors, and a prediction is computed by all threads
        map_checkpoints(
            readers,
            out,
            predict,
            ranges=lambda key, spec: [(0, spec.numel)],
            workers=1,
            overwrite=overwrite,
            files=files,
        )
    return result


def _check_order(readers: Sequence[CheckpointReader]) -> None:
    """Compare the sample counts that :meth:`Trajectory.save` noted in the files, where all have one."""
    sizes = [int(samples) for reader in readers if (samples := reader.metadata.get("samples", "")).isdigit()]
    if len(sizes) == len(readers) and sizes != sorted(sizes):
        raise HyperparameterError(
            "order of the checkpoints",
            found=f"training samples {sizes}",
            expected="ascending",
            do="Give the checkpoint of the smallest training set first.",
        )
