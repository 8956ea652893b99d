"""Sparse autoencoders, read from folders of SAELens or wrapped around any object that encodes and decodes.

Legend: ``B`` rows, ``D`` features of a site, ``J`` features of a dictionary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from weightsmith.core.errors import CheckpointError, HyperparameterError, NonFiniteError, ShapeError
from weightsmith.core.io import atomic_output, load_state_dict, read_json, write_file
from weightsmith.core.linalg import is_finite, upcast

__all__ = [
    "Dictionary",
    "GatedSAE",
    "JumpReLUSAE",
    "SparseAutoencoder",
    "StandardSAE",
    "TopKSAE",
    "as_dictionary",
    "load_dictionary",
    "load_sae",
    "save_sae",
]

PIECE = 1024
"""Features decoded at a time."""


class SparseAutoencoder(nn.Module):
    r"""A sparse autoencoder, :math:`f(x) = \sigma(x W_{enc} + b_{enc})` and :math:`\hat x = f W_{dec} + b_{dec}`.

    Parameters
    ----------
    d_in, d_sae : int
        Features of the activations and of the dictionary.
    tensors : mapping of str to Tensor, optional
        Values of the parameters; those that are not given are zero.

    Examples
    --------
    >>> sae = StandardSAE(2, 3, {"W_enc": torch.ones(2, 3), "W_dec": torch.ones(3, 2)})
    >>> sae.decode(sae.encode(torch.tensor([[1.0, 1.0]]))).tolist()
    [[6.0, 6.0]]
    """

    architecture = ""
    parameters_of: tuple[str, ...] = ("W_enc", "b_enc", "W_dec", "b_dec")
    subtracts_bias = False
    """Whether the decoder's bias is subtracted from the inputs of the encoder."""
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, d_in: int, d_sae: int, tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.d_in, self.d_sae = d_in, d_sae
        shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        for name in self.parameters_of:
            shape = shapes.get(name, (d_sae,))
            value = (tensors or {}).get(name)
            if value is not None and tuple(value.shape) != shape:
                raise ShapeError(f"{name} of the autoencoder", found=tuple(value.shape), expected=shape)
            if value is not None and not is_finite(value):
                raise NonFiniteError(f"{name} of the autoencoder holds NaN or infinity", do="Train it again.")
            self.register_parameter(name, nn.Parameter(torch.zeros(shape) if value is None else upcast(value)))

    def _pre(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B J"]:
        return self._centered(x_BD) @ self.W_enc + self.b_enc

    def _centered(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return x_BD - self.b_dec if self.subtracts_bias else x_BD

    def encode(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B J"]:
        """Return the coefficients."""
        raise NotImplementedError

    def decode(self, f_BJ: Float[Tensor, "B J"]) -> Float[Tensor, "B D"]:
        """Return the reconstruction."""
        return f_BJ @ self.W_dec + self.b_dec

    def forward(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Encode and decode."""
        return self.decode(self.encode(x_BD))

    def settings(self) -> dict[str, Any]:
        """What its configuration says beside the sizes."""
        return {}

    @torch.no_grad()
    def fold_scale(self, scale: float) -> None:
        """Make an autoencoder of scaled activations one of the activations themselves.

        Parameters
        ----------
        scale : float
            What the activations were multiplied by, above 0. The coefficients stay as they are; those that are
            multiplied by the norm of their decoder row are divided by the scale, as the rows are.

        Raises
        ------
        HyperparameterError
            If the scale is out of range.
        """
        if not 0 < scale < math.inf:
            raise HyperparameterError("scale", found=scale, expected="above 0")
        self.W_enc.mul_(scale)
        self.W_dec.div_(scale)
        self.b_dec.div_(scale)  # or the reconstruction would be off by a constant


class StandardSAE(SparseAutoencoder):
    """A sparse autoencoder with rectified coefficients."""

    architecture = "standard"

    def encode(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B J"]:
        return self._pre(x_BD).relu()


class JumpReLUSAE(SparseAutoencoder):
    """Coefficients at or below a threshold of their own are zero."""

    architecture = "jumprelu"
    parameters_of = (*SparseAutoencoder.parameters_of, "threshold")
    threshold: Tensor

    def encode(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B J"]:
        pre_BJ = self._pre(x_BD)
        return pre_BJ.relu() * (pre_BJ > self.threshold)


class TopKSAE(SparseAutoencoder):
    """All but the k largest coefficients are zero.

    Parameters
    ----------
    d_in, d_sae : int
        Features of the activations and of the dictionary.
    tensors : mapping of str to Tensor, optional
        Values of the parameters.
    k : int
        Coefficients that are kept, from 1 to ``d_sae``.
    rescaled : bool, default: False
        Whether coefficients are compared after multiplication by the norm of their decoder row.
    """

    architecture = "topk"

    def __init__(
        self, d_in: int, d_sae: int, tensors: Mapping[str, Tensor] | None = None, *, k: int, rescaled: bool = False
    ) -> None:
        if not 1 <= k <= d_sae:
            raise HyperparameterError("k", found=k, expected=f"from 1 to the {d_sae} features of the dictionary")
        super().__init__(d_in, d_sae, tensors)
        self.k, self.rescaled = k, rescaled

    def encode(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B J"]:
        # SAELens rectifies what is kept, the paper's code does not: files are read by both
        norm_J = self.W_dec.norm(dim=1) if self.rescaled else 1.0
        pre_BJ = self._pre(x_BD) * norm_J
        top = pre_BJ.topk(self.k, dim=-1)
        return torch.zeros_like(pre_BJ).scatter(-1, top.indices, top.values.relu())

    def decode(self, f_BJ: Float[Tensor, "B J"]) -> Float[Tensor, "B D"]:
        return super().decode(f_BJ / self.W_dec.norm(dim=1).clamp(min=1e-12) if self.rescaled else f_BJ)

    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "rescale_acts_by_decoder_norm": self.rescaled}


class GatedSAE(SparseAutoencoder):
    """One affine map of the inputs decides which coefficients are active, a rescaled one how large they are."""

    architecture = "gated"
    parameters_of = ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec")
    b_gate: Tensor
    r_mag: Tensor
    b_mag: Tensor

    def encode(self, x_BD: Float[Tensor, "B D"]) -> Float[Tensor, "B J"]:
        pre_BJ = self._centered(x_BD) @ self.W_enc
        magnitude_BJ = (pre_BJ * self.r_mag.exp() + self.b_mag).relu()
        return magnitude_BJ * (pre_BJ + self.b_gate > 0)


CLASSES: dict[str, Any] = {cls.architecture: cls for cls in (StandardSAE, JumpReLUSAE, TopKSAE, GatedSAE)}


def load_sae(path: str | Path) -> SparseAutoencoder:
    """Read a sparse autoencoder from a folder as SAELens writes it: ``cfg.json`` and a ``.safetensors`` file.

    Parameters
    ----------
    path : path-like
        The folder.

    Returns
    -------
    SparseAutoencoder
        Standard, JumpReLU, TopK or gated, in float32.

    Raises
    ------
    CheckpointError
        If files are missing or damaged, or the configuration lacks the activation function or k, or asks for something
        that would change the function (a normalization of the inputs that is not folded into the weights).
    HyperparameterError
        If k is out of range.
    ShapeError
        If tensors do not have the configured shapes.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_sae(TopKSAE(4, 8, k=2), f"{folder}/sae")
    ...     load_sae(f"{folder}/sae").k
    2
    """
    folder = Path(path)
    config = read_json(folder / "cfg.json")
    name = _architecture(config, folder)
    normalization = config.get("normalize_activations", "none")
    if normalization not in ("none", None, False):
        raise CheckpointError(
            f"{folder}: normalize_activations",
            found=normalization,
            expected="'none'",
            do="Fold the scale of the activations into the weights.",
        )
    files = sorted(folder.glob("*.safetensors"))
    if "sae_weights.safetensors" in (file.name for file in files):
        files = [folder / "sae_weights.safetensors"]
    if len(files) != 1:
        raise CheckpointError(f"{folder}: weights", found=[file.name for file in files], expected="one .safetensors")
    tensors = load_state_dict(files[0])
    cls = CLASSES[name]
    if missing := [each for each in cls.parameters_of if each not in tensors]:
        raise CheckpointError(f"{files[0]} of a {name} autoencoder lacks {missing}", found=sorted(tensors))
    options: dict[str, Any] = {}
    if name == "topk":
        k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
        if not isinstance(k, int):
            raise CheckpointError(f"{folder}: k of a TopK autoencoder", found=k, expected="a whole number in cfg.json")
        options = {"k": k, "rescaled": bool(config.get("rescale_acts_by_decoder_norm", False))}
    sizes = [config.get(size) for size in ("d_in", "d_sae")]
    if not all(isinstance(size, int) for size in sizes):
        raise CheckpointError(f"{folder}: d_in and d_sae", found=sizes, expected="whole numbers in cfg.json")
    sae: SparseAutoencoder = cls(*sizes, tensors, **options)
    sae.subtracts_bias = bool(config.get("apply_b_dec_to_input", True))  # SAELens's own default
    return sae.eval()


def _architecture(config: Mapping[str, Any], folder: Path) -> str:
    """The architecture that a configuration names; both generations of SAELens's files say it differently."""
    architecture = config.get("architecture")
    activation = config.get("activation_fn", config.get("activation_fn_str"))
    if architecture == "standard" and activation is None and not config.keys() & {"metadata", "meta"}:
        architecture = None  # an older file, which holds the activation function on its own
    if architecture in (None, "standard") and isinstance(activation, str):
        architecture = {"relu": "standard", "topk": "topk"}.get(activation.lower(), activation)
    if architecture not in CLASSES:
        raise CheckpointError(
            f"{folder}: architecture and activation function in cfg.json",
            found=f"architecture {config.get('architecture')!r}, activation_fn {activation!r}",
            expected=f"one of {sorted(CLASSES)}, with its activation function",
            do="Add what it was trained with: read as another one it would reconstruct badly without an error.",
        )
    return architecture


def save_sae(
    sae: SparseAutoencoder, out: str | Path, *, metadata: Mapping[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Write a sparse autoencoder as a folder that SAELens and :func:`load_sae` read.

    Parameters
    ----------
    sae : SparseAutoencoder
        The autoencoder.
    out : path-like
        The folder.
    metadata : mapping, optional
        What is known of it, such as the model and the site.
    overwrite : bool, default: False
        Replace what is there.

    Raises
    ------
    CheckpointError
        If it cannot be written, or something is there.
    """
    config = {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtracts_bias,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **sae.settings(),
        "metadata": dict(metadata or {}),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in sae.named_parameters()}
    with atomic_output(out, overwrite=overwrite) as target:
        save_file(tensors, target / "sae_weights.safetensors")
        write_file(target / "cfg.json", json.dumps(config, indent=2) + "\n")


def load_dictionary(path: str | Path) -> Any:
    """Read a folder of SAELens, or a ``.safetensors`` file with ``components`` (atoms as rows) and perhaps ``mean``.

    Coefficients of components are those of least squares; for orthonormal ones, such as those of an
    :class:`~weightsmith.dictionary.OnlineOrthogonalDictionary`, the scalar products.

    Raises
    ------
    CheckpointError
        If it is neither.
    """
    if Path(path).suffix != ".safetensors":
        return load_sae(path)
    tensors = load_state_dict(path)
    components_JD = tensors.get("components")
    if components_JD is None or components_JD.ndim != 2:
        raise CheckpointError(f"{path}: components", found=sorted(tensors), expected="a matrix with an atom per row")
    components_JD = upcast(components_JD)
    mean_D = upcast(tensors.get("mean", torch.zeros(components_JD.shape[1])))
    inverse_DJ = torch.linalg.pinv(components_JD)
    return Dictionary(lambda x_BD: (x_BD - mean_D) @ inverse_DJ, components_JD, mean_D)


class Dictionary(NamedTuple):
    """What the evaluation needs of a dictionary.

    Attributes
    ----------
    encode : callable
        From activations to coefficients.
    decoder_JD : Tensor of shape (dictionary features, features)
        The vector of each feature.
    bias_D : Tensor of shape (features,)
        The reconstruction without any feature.
    """

    encode: Callable[[Float[Tensor, "B D"]], Float[Tensor, "B J"]]
    decoder_JD: Float[Tensor, "J D"]
    bias_D: Float[Tensor, " D"]

    def decode(self, f_BJ: Float[Tensor, "B J"]) -> Float[Tensor, "B D"]:
        """Return the reconstruction."""
        return f_BJ @ self.decoder_JD + self.bias_D


@torch.no_grad()
def as_dictionary(source: Any, width: int) -> Dictionary:
    """Return the coefficients' function and the vectors of anything that encodes and decodes.

    Parameters
    ----------
    source : object
        With ``encode`` and ``decode`` (of SAELens, dictionary_learning, or your own), or a fitted estimator of
        scikit-learn with ``transform`` and ``inverse_transform`` or ``components_``, such as weightsmith's own.
    width : int
        Features of the activations.

    Raises
    ------
    ShapeError
        If it does not take, or reconstruct, activations of this width.
    HyperparameterError
        If it cannot encode or decode, or its decoder is not affine.

    Examples
    --------
    >>> from sklearn.decomposition import PCA
    >>> as_dictionary(PCA(2).fit(torch.randn(9, 4)), 4).decoder_JD.shape
    torch.Size([2, 4])
    """
    encode, decode = _functions(source)
    zero_BD = torch.zeros(2, width)
    try:
        coefficients = encode(zero_BD)
    except (RuntimeError, ValueError) as error:
        raise ShapeError(
            f"activations of {width} features", found=error, expected="what the dictionary takes"
        ) from error
    if coefficients.ndim != 2 or len(coefficients) != 2:
        raise ShapeError("coefficients", found=tuple(coefficients.shape), expected="(rows, features of the dictionary)")
    hidden = coefficients.shape[1]
    bias_BD = decode(torch.zeros(1, hidden))
    if bias_BD.shape != (1, width):
        raise ShapeError("reconstruction", found=tuple(bias_BD.shape), expected=(1, width))
    eye = torch.eye(hidden)
    decoder_JD = torch.cat([decode(piece) for piece in eye.split(PIECE)]) - bias_BD
    probe = torch.rand(1, hidden, generator=torch.Generator().manual_seed(0))
    if not torch.allclose(decode(probe), probe @ decoder_JD + bias_BD, rtol=1e-3, atol=1e-3 * float(decoder_JD.norm())):
        raise HyperparameterError("dictionary", found="a decoder that is not affine", expected="a vector per feature")
    return Dictionary(encode, decoder_JD, bias_BD[0])


def _functions(source: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """How a dictionary encodes and decodes, from and to float32 tensors."""

    def plain(function: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
        def call(rows: Tensor) -> Tensor:
            like = next(source.parameters(), rows) if isinstance(source, nn.Module) else rows
            return upcast(function(rows.to(like)).detach()).to(rows.device)

        return call

    def array(function: Callable[[Any], Any]) -> Callable[[Tensor], Tensor]:
        return lambda rows: torch.as_tensor(np.asarray(function(rows.cpu().numpy())), dtype=torch.float32)

    if hasattr(source, "encode") and hasattr(source, "decode"):
        return plain(source.encode), plain(source.decode)
    if hasattr(source, "transform") and hasattr(source, "inverse_transform"):
        return array(source.transform), array(source.inverse_transform)
    if hasattr(source, "transform") and hasattr(source, "components_"):
        return array(source.transform), array(lambda codes: codes @ source.components_)
    raise HyperparameterError(
        "dictionary",
        found=type(source).__name__,
        expected="encode and decode, or transform and inverse_transform or components_",
    )
