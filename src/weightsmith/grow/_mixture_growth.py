r"""MixtureGrowth: train two members of half the width, grow them into one network of the whole width.

"MixtureGrowth: Growing Neural Networks by Recombining Learned Parameters" (Pham et al., WACV 2024), arXiv 2311.04251.
A member's weight is a mixture of its own few templates. The grown weight has the members' on its diagonal; the blocks
beside it are new mixtures of the same templates (:mod:`weightsmith.grow._shared.templates`):

.. math:: W_m = \sum_j \alpha_{m,j}\, T_{m \bmod 2,\,j}, \qquad
   W = \begin{pmatrix} W_0 & W_2 \\ W_3 & W_1 \end{pmatrix}

With :math:`\alpha_2 = \alpha_3 = 0` the grown network is the members' sum. Half the width is a quarter of the compute:
two members and a short training of the whole cost 60 to 70 % of training the whole.

Parameters that do not grow (such as embeddings and norms of a fixed width) are one tensor in all three networks, which
only the first member trains. Layers that lead back to the fixed width then take the mean of the members.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from weightsmith.core.choices import check_choice
from weightsmith.core.data import Batch, Batches, Samples, call
from weightsmith.core.errors import HyperparameterError, UnsupportedModelError
from weightsmith.core.models import evaluation_mode, fold_parametrizations, get_module, recalibrate_batchnorm
from weightsmith.core.results import Result, record
from weightsmith.core.tied import parameter_names
from weightsmith.core.training import (
    FitOptions,
    Loss,
    check_options,
    default_loss,
    draw_seed,
    fit,
    logits_of,
    refuse_adapters,
    seed_of,
    training_method,
)
from weightsmith.grow._shared.templates import (
    LAYOUTS,
    Growth,
    TemplateMix,
    check_scale,
    coefficients,
    grow_coefficients,
)
from weightsmith.grow._widen_net2net import is_matrix, match_widths

__all__ = ["MixtureGrowth", "joint_loss", "mixture_growth", "parameter_groups"]

INNER_WIDTHS = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "moe_intermediate_size")


@dataclass
class _Mixed:
    """A weight that grows: its templates, one tensor per set, and the coefficients of its blocks."""

    name: str
    grows: tuple[bool, bool]
    transposed: bool
    templates: list[nn.Parameter]
    alphas: list[nn.Parameter]


class MixtureGrowth:
    """Two members and the network they grow into, sharing their templates.

    Parameters
    ----------
    make_model : callable
        From a width to a new model of it. What shrinks and grows with the width is found by comparing shapes.
    width : int
        Width of a member; the grown network has twice as much.
    templates : int, default: 2
        Of each weight and member. With 2, all templates are as large as the grown weight.
    groups : callable, optional
        From a layer's name to the name of a group; layers of a group and of one shape share their templates.
    generator : torch.Generator, optional
        Draws coefficients, and templates such that each mixed weight has variance 2 / fan-in.

    Raises
    ------
    HyperparameterError
        If ``width`` or ``templates`` is not positive.
    ShapeError, UnsupportedModelError
        As :func:`weightsmith.grow._widen_net2net.match_widths`.

    References
    ----------
    Pham et al., arXiv 2311.04251.

    Examples
    --------
    >>> make = lambda width: nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2, bias=False))
    >>> growth = MixtureGrowth(make, width=4)
    >>> wide, x = growth.grow(init="zero"), torch.ones(1, 3)
    >>> torch.allclose(wide(x), growth.member(0)(x) + growth.member(1)(x), atol=1e-6)
    True
    >>> MixtureGrowth.export(wide)[0]
    Linear(in_features=3, out_features=8, bias=True)
    """

    def __init__(
        self,
        make_model: Callable[[int], nn.Module],
        *,
        width: int,
        templates: int = 2,
        groups: Callable[[str], str] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        for name, value in (("width", width), ("templates", templates)):
            if value < 1:
                raise HyperparameterError(name, found=value, expected="at least 1")
        self._members = (make_model(width), make_model(width))
        self._wide = make_model(2 * width)
        self._grown = False
        self._axes = match_widths(self._members[0], self._wide)
        self.layers: dict[str, _Mixed] = {}
        banks: dict[tuple[str, torch.Size], list[nn.Parameter]] = {}
        for name, axes in self._axes.items():
            path, _, attribute = name.rpartition(".")
            module = get_module(self._members[0], path)
            if attribute != "weight" or not axes or not is_matrix(module):
                continue
            transposed = isinstance(module, Conv1D)
            grows = (1 - int(not transposed) in axes, int(not transposed) in axes)
            weight = module.weight.detach().T if transposed else module.weight.detach()  # type: ignore[operator]
            alphas = coefficients(4 if all(grows) else 2, templates, shared=groups is not None, generator=generator)
            alphas = [nn.Parameter(alpha.detach().to(weight)) for alpha in alphas]
            key = (name if groups is None else groups(path), weight.shape)
            if key not in banks:
                banks[key] = [_draw(weight, alphas[s], generator) for s in (0, 1)]
            self.layers[path] = _Mixed(path, grows, transposed, banks[key], alphas)
        for number, member in enumerate(self._members):
            for layer in self.layers.values():
                mix = TemplateMix([layer.alphas[number]], transposed=layer.transposed)
                _mix(get_module(member, layer.name), mix, [layer.templates[number]])
        self._share_what_stays()

    @classmethod
    def from_plain(
        cls,
        make_model: Callable[[int], nn.Module],
        first: nn.Module,
        second: nn.Module | None = None,
        *,
        width: int,
        templates: int = 2,
        generator: torch.Generator | None = None,
    ) -> MixtureGrowth:
        """Start from one or two trained, ordinary models of a member's width.

        Parameters
        ----------
        make_model, width, templates, generator
            As for the class. With one template the off-diagonal blocks can only start at zero.
        first, second : nn.Module
            Their weights become the first template of a set, with coefficient one; the other templates are drawn.
            Without ``second`` that member starts fresh.

        Returns
        -------
        MixtureGrowth
            Its members compute the same as the models.

        Raises
        ------
        UnsupportedModelError
            If a model is not of the architecture that ``make_model`` makes.
        """
        growth = cls(make_model, width=width, templates=templates, generator=generator)
        for number, model in ((0, first), (1, second)):
            if model is not None:
                growth._adopt(number, model)
        return growth

    def member(self, number: int) -> nn.Module:
        """Return a member, to be trained and used as any model.

        Raises
        ------
        HyperparameterError
            If ``number`` is neither 0 nor 1.
        """
        if number not in (0, 1):
            raise HyperparameterError("member", found=number, expected="0 or 1")
        return self._members[number]

    @property
    def fixed(self) -> list[str]:
        """Names of the parameters that do not grow and that all three networks share."""
        names = dict(self._members[0].named_parameters())
        return [name for name in names if not self._axes.get(name, (0,)) and not self._adds_up(name)]

    def grow(
        self,
        init: Growth = "orthogonal",
        *,
        scale: float = 1.0,
        calibration: Batches | None = None,
        generator: torch.Generator | None = None,
    ) -> nn.Module:
        """Return the grown network, which shares templates and coefficients with its members; once only.

        Parameters
        ----------
        init : {"orthogonal", "zero", "copy", "random"}, default: "orthogonal"
            The new blocks' coefficients, see :func:`weightsmith.grow._shared.templates.grow_coefficients`. With
            ``"zero"`` it computes the members' sum (their mean, where something is fixed).
        scale : float, default: 1.0
            Of the new coefficients.
        calibration : sequence of batches, optional
            Inputs to re-estimate batch normalization with: statistics of the members do not hold where new blocks are
            not zero.
        generator : torch.Generator, optional
            Draws the coefficients.

        Raises
        ------
        UnsupportedModelError
            If it has grown already.
        """
        if self._grown:
            raise UnsupportedModelError(
                "this growth has grown already", do="Copy it before, with copy.deepcopy, to grow it in several ways."
            )
        gain = 0.5 if self.fixed else 1.0
        for layer in self.layers.values():
            if all(layer.grows):
                grow_coefficients(layer.alphas, init, scale=scale, generator=generator)
            mix = TemplateMix(
                layer.alphas,
                LAYOUTS[layer.grows],
                transposed=layer.transposed,
                gain=gain if layer.grows == (False, True) else 1.0,
            )
            _mix(get_module(self._wide, layer.name), mix, layer.templates)
        self._join(gain)
        self._grown = True
        if calibration is not None:
            recalibrate_batchnorm(self._wide, calibration)
        return self._wide

    @torch.no_grad()
    def ensemble_error(self, inputs: Batch) -> float:
        """Measure by how much a grown network without new blocks differs from its members' sum (or mean).

        Near zero unless members do not lie side by side in the wide network: features are concatenated, or normed over
        all channels; or, where something is fixed, layers mix what the members have computed.

        Parameters
        ----------
        inputs : Batch
            A batch of the model.

        Returns
        -------
        float
            The largest difference over the largest logit.
        """
        twin = copy.deepcopy(self)
        zero = twin._wide if twin._grown else twin.grow("zero")
        for layer in twin.layers.values():
            for alpha in layer.alphas[2:]:
                alpha.zero_()
        with evaluation_mode(zero), evaluation_mode(twin._members[0]), evaluation_mode(twin._members[1]):
            ours = logits_of(call(zero, inputs))
            parts = [logits_of(call(member, inputs)) for member in twin._members]
        theirs = (parts[0] + parts[1]) * (0.5 if self.fixed else 1.0)
        return ((ours - theirs).abs().max() / theirs.abs().max()).item()

    @staticmethod
    def export(model: nn.Module) -> nn.Module:
        """Return an ordinary copy of a member or the grown network: plain weights, no templates."""
        plain = copy.deepcopy(model)
        fold_parametrizations(plain)
        return plain

    def _adds_up(self, name: str) -> bool:
        """Whether this is the bias of a layer where the outputs of the members add up."""
        path, _, attribute = name.rpartition(".")
        return attribute == "bias" and path in self.layers and self.layers[path].grows == (False, True)

    def _share_what_stays(self) -> None:
        first, second = self._members
        frozen: dict[int, nn.Parameter] = {}
        for name in self.fixed:
            ours = first.get_parameter(name)
            theirs = frozen.setdefault(id(ours), nn.Parameter(ours.detach(), requires_grad=False))
            for path in _aliases(second, name):
                _put(second, path, theirs)

    @torch.no_grad()
    def _adopt(self, number: int, model: nn.Module) -> None:
        member, state = self._members[number], model.state_dict()
        expected = {name: tensor.shape for name, tensor in self.export(member).state_dict().items()}
        if odd := [
            name for name in {**expected, **state} if name not in state or state[name].shape != expected.get(name)
        ]:
            raise UnsupportedModelError(f"model {number} is not what make_model makes", found=f"{odd[0]!r} differs")
        for layer in self.layers.values():
            weight = state.pop(f"{layer.name}.weight")
            templates, alpha = layer.templates[number], layer.alphas[number]
            alpha.zero_()
            alpha[0] = 1.0
            spread = templates.std().clamp(min=torch.finfo(torch.float32).tiny)
            templates.mul_(weight.std() / spread)
            templates[0] = weight.T if layer.transposed else weight
        fixed = {path for name in self.fixed for path in _aliases(member, name)} if number else set()
        member.load_state_dict({name: value for name, value in state.items() if name not in fixed}, strict=False)

    @torch.no_grad()
    def _join(self, gain: float) -> None:
        """Everything of the grown network that is not mixed: side by side, added up, or the one that is shared."""
        first, second = (dict(member.state_dict(keep_vars=True)) for member in self._members)
        wide = dict(self._wide.state_dict(keep_vars=True))
        fixed = {path: name for name in self.fixed for path in _aliases(self._wide, name)}
        for name, axes in self._axes.items():
            if name not in wide:
                continue
            if name in fixed:
                _put(self._wide, name, self._members[0].get_parameter(fixed[name]))
            elif self._adds_up(name):
                wide[name].copy_(gain * (first[name] + second[name]))
            elif axes:
                wide[name].copy_(torch.cat([first[name], second[name]], axes[0]))
            else:
                wide[name].copy_(first[name])


def joint_loss(*, first_weight: float = 0.1) -> Loss:
    """Make the loss that trains both members at once, as the paper's code can: for a model ``nn.ModuleList(members)``.

    Parameters
    ----------
    first_weight : float, default: 0.1
        Weight of the first member's loss; the second's is 1.

    Examples
    --------
    >>> members = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    >>> loss = joint_loss()(members, (torch.ones(1, 2), torch.tensor([0])))
    >>> loss.requires_grad
    True
    """

    def loss(members: nn.Module, batch: Any) -> Tensor:
        first, second = members.children()
        return (first_weight * default_loss(first, batch) + default_loss(second, batch)) / 2

    return loss


def parameter_groups(model: nn.Module, *, weight_decay: float = 5e-4) -> list[dict[str, Any]]:
    """Return an optimizer's groups: coefficients must not decay, all else may.

    Examples
    --------
    >>> make = lambda width: nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    >>> [len(group["params"]) for group in parameter_groups(MixtureGrowth(make, width=4).grow())]
    [6, 4]
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [p for name, p in trained if ".alphas." not in name], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if ".alphas." in name], "weight_decay": 0.0},
    ]


@training_method(learning_rate=1e-4, weight_decay=5e-4, batch_size=8, scheduler="cosine")
def mixture_growth(
    model: nn.Module,
    training: Samples,
    *,
    init: Growth = "orthogonal",
    scale: float = 1.0,
    templates: int = 2,
    member_learning_rate: float = 1e-3,
    member_epochs: int = 1,
    generator: torch.Generator | None = None,
    **options: Unpack[FitOptions],
) -> Result:
    """Double the inner width of a transformer's MLPs: train a second member from the model, grow both, train on.

    For other widths, and networks that are no transformers, use :class:`MixtureGrowth` from Python.

    Parameters
    ----------
    model : nn.Module
        A Hugging Face model, trained; the first member. Changed in place, its configuration too. Frozen parameters that
        do not grow stay as they are.
    training : sequence of mapping
        Samples with the model's inputs and ``labels``.
    init : {"orthogonal", "zero", "copy", "random"}, default: "orthogonal"
        The new blocks' coefficients; they matter only where both sides of a matrix grow.
    scale : float, default: 1.0
        Of the new coefficients.
    templates : int, default: 2
        Of each weight and member.
    member_learning_rate : float, default: 1e-3
        Learning rate of the second member. Its other training options are those of the grown network.
    member_epochs : int, default: 1
        Passes of the second member over the samples.
    generator : torch.Generator, optional
        Draws templates, coefficients and the order of the samples.
    **options
        Training options of the grown network, see :class:`weightsmith.core.training.FitOptions`. The optimizer is
        AdamW, without weight decay of coefficients.

    Returns
    -------
    Result
        Widths and parameters before and after, the losses of both trainings.

    Raises
    ------
    HyperparameterError
        If an option is out of range.
    UnsupportedModelError
        If the configuration has no inner width, or a layer cannot grow.

    References
    ----------
    Pham et al., arXiv 2311.04251.
    """
    check_options({"learning_rate": member_learning_rate, "epochs": member_epochs}, prefix="member_")
    check_scale(scale)
    check_choice("init", init, Growth)
    refuse_adapters(model)
    field, width = _inner_width(model)
    hyper: dict[str, Any] = {"init": init, "scale": scale, "templates": templates}
    member: FitOptions = {**options, "learning_rate": member_learning_rate, "epochs": member_epochs}
    seed = draw_seed(generator)
    generator = torch.Generator().manual_seed(seed)
    own: dict[str, Any] = {"member_learning_rate": member_learning_rate, "member_epochs": member_epochs}
    with record("mixture-growth", seed=seed_of(generator), **hyper, **own, **options) as result:

        def make_model(inner: int) -> nn.Module:
            config = copy.deepcopy(model.config)
            setattr(config, field, inner)
            like = next(model.parameters())
            made: nn.Module = type(model)(config).to(like)
            return made

        # the second member starts as the model, too: a random one would need a training as long as the model's own, and
        # without new blocks the grown network is then as good as the model from the first step
        start: dict[str, Any] = {"width": width, "templates": templates, "generator": generator}
        growth = MixtureGrowth.from_plain(make_model, model, model, **start)

        frozen = {(name, p.shape) for name, p in model.named_parameters() if not p.requires_grad}

        def train(network: nn.Module, options: FitOptions) -> list[float]:
            for name, parameter in network.named_parameters():
                if (name, parameter.shape) in frozen:  # what grows is trained, whatever it was
                    parameter.requires_grad_(False)
            groups = parameter_groups(network, weight_decay=options["weight_decay"])
            optimizer = torch.optim.AdamW(groups, lr=options["learning_rate"], fused=True)
            return fit(network, training, optimizer=optimizer, seed=seed, **options).losses

        result.curves["member's training loss"] = train(growth.member(1), member)
        wide = growth.grow(init, scale=scale, generator=generator)
        result.curves["training loss"] = train(wide, options)
        fold_parametrizations(wide)
        for layer in growth.layers.values():
            result.layer(layer.name, shape=tuple(get_module(wide, layer.name).weight.shape))  # type: ignore[arg-type]
        before = sum(p.numel() for p in model.parameters())
        for name, child in wide.named_children():
            setattr(model, name, child)
        model.config = wide.config
        after = sum(p.numel() for p in model.parameters())
        result.totals = {"width_before": width, "width": 2 * width, "parameters_before": before, "parameters": after}
    return result


def _draw(weight: Tensor, alpha: Tensor, generator: torch.Generator | None) -> nn.Parameter:
    """The templates of one set: each a weight's shape."""
    shape = (len(alpha), *weight.shape)
    # the paper's code takes the whole template for the fan-in, and starts with far smaller weights
    std = math.sqrt(2 / math.prod(weight.shape[1:])) / alpha.float().norm().item()
    return nn.Parameter((std * torch.randn(shape, generator=generator)).to(weight))


def _mix(module: nn.Module, mix: TemplateMix, templates: list[nn.Parameter]) -> None:
    """Parametrize a module's weight by templates that others share."""
    parametrize.register_parametrization(module, "weight", mix, unsafe=True)
    held: Any = module.parametrizations["weight"]  # type: ignore[index]
    if len(templates) == 1:
        held.original = templates[0]
    else:
        held.original0, held.original1 = templates


def _aliases(model: nn.Module, name: str) -> list[str]:
    """All names of a parameter."""
    return parameter_names(model)[model.get_parameter(name)]


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(get_module(model, path), attribute, parameter)


def _inner_width(model: nn.Module) -> tuple[str, int]:
    """The field of the configuration with the inner width of the MLPs, and its value.

    Mixtures have a field that no layer follows: a model without memory is built to see which one widens it.
    """
    config: Any = getattr(model, "config", None)
    size = sum(parameter.numel() for parameter in model.parameters())
    for field in INNER_WIDTHS:
        if hasattr(config, field):
            wide = copy.deepcopy(config)
            width = getattr(config, field) or 4 * config.hidden_size
            setattr(wide, field, 2 * width)
            with torch.device("meta"):
                if sum(parameter.numel() for parameter in type(model)(wide).parameters()) > size:
                    return field, width
    raise UnsupportedModelError(
        "a model whose configuration has no inner width",
        found=type(model).__name__,
        expected=f"one of {INNER_WIDTHS}",
        do="Use MixtureGrowth(make_model, width=...) from Python.",
    )
