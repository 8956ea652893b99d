"""The configuration of a Bone adapter, on top of PEFT's own of MiSS."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from peft import MissConfig

from weightsmith.core.choices import check_choice
from weightsmith.core.errors import HyperparameterError

__all__ = ["PEFT_NAMES", "BoneConfig", "BoneType", "Variant"]

Variant: TypeAlias = Literal["bat", "bat-row", "miss", "mini"]

PEFT_NAMES: dict[str, str | bool] = {"bat": "bat", "bat-row": "bat", "miss": True, "mini": "mini"}


class BoneType(enum.StrEnum):
    """The name under which PEFT finds Bone's classes; PEFT's own enum cannot be extended."""

    BONE = "BONE"


@dataclass
class BoneConfig(MissConfig):
    """Configuration of a Bone adapter, for ``peft.get_peft_model``.

    Takes all of ``peft.MissConfig``'s fields; by default all linear layers but the output layer are adapted.

    Parameters
    ----------
    r : int, default: 64
        Side of a block. ``"bat"`` and ``"bat-row"`` need it to divide both dimensions of every layer, unless ``pad``.
    variant : {"bat", "bat-row", "miss", "mini"}, default: "bat"
        How the blocks change a weight, see :mod:`weightsmith.adapt._bone.blocks`. ``"bat"`` is the paper's method,
        ``"bat-row"`` its form that never reads the weight, ``"miss"`` the additive successor, ``"mini"`` the
        latter with ``mini_r`` columns. Without it, PEFT's ``init_weights`` says which.
    pad : bool, default: False
        Let the last blocks of ``"bat"`` and ``"bat-row"`` hang over the edge.
    keep_base : bool, default: False
        Keep a copy of every weight that is merged, so that unmerging gives it back bit by bit; without, it is
        solved for in float64.
    init_weights : bool or str, default: "bat"
        ``False`` starts from random blocks, for tests; otherwise PEFT's name of the variant.

    Raises
    ------
    HyperparameterError
        If a number is out of range or the variant is unknown.

    References
    ----------
    Kang, arXiv 2409.15371 (v1-v3: ``"bat"``; from v4 on: ``"miss"``).

    Examples
    --------
    >>> from peft import get_peft_model
    >>> from torch import nn
    >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), BoneConfig(r=4, target_modules=["0"]))
    >>> model.print_trainable_parameters()
    trainable params: 16 || all params: 52 || trainable%: 30.7692
    """

    target_modules: list[str] | str | None = field(default="all-linear")
    init_weights: bool | Literal["bat", "mini"] = field(default="bat")
    variant: Variant | None = field(default=None)
    pad: bool = field(default=False)
    keep_base: bool = field(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.only_linear = True  # set when the layers are known: PEFT's MiSS takes no Conv1D and no convolution
        self.peft_type = BoneType.BONE
        if self.variant is None:
            self.variant = self.init_weights if self.init_weights in ("bat", "mini") else "miss"
        check_choice("variant", self.variant, Variant)
        if self.init_weights is not False:
            self.init_weights = PEFT_NAMES[self.variant]  # type: ignore[assignment]
        for name in ("r", "mini_r"):
            if getattr(self, name) < 1:
                raise HyperparameterError(name, found=getattr(self, name), expected=">= 1")
        if not 0 <= self.miss_dropout < 1:
            raise HyperparameterError("miss_dropout", found=self.miss_dropout, expected="in [0, 1)")
        if self.miss_dropout and self.variant.startswith("bat"):
            raise HyperparameterError(
                f"miss_dropout with variant {self.variant!r}", found=self.miss_dropout, expected="0"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved: PEFT's own ``MISS`` wherever PEFT can read it, else the type ``BONE``."""
        stored = super().to_dict()
        assert self.variant is not None
        if self.variant != "bat-row" and not self.pad and self.only_linear:
            stored |= {"peft_type": "MISS", "init_weights": PEFT_NAMES[self.variant]}
            for name in ("variant", "pad", "keep_base"):
                del stored[name]
        return stored

    @classmethod
    def from_peft_type(cls, **stored: Any) -> BoneConfig:
        """Build the configuration from what :meth:`to_dict`, PEFT's MiSS or PEFT's former Bone have saved.

        Raises
        ------
        HyperparameterError
            If it is another method's.
        """
        kind = stored.pop("peft_type", "BONE")
        if kind not in ("BONE", "MISS"):
            raise HyperparameterError("peft_type of the adapter", found=str(kind), expected="BONE or MISS")
        config: BoneConfig = super().from_peft_type(**stored)
        return config
