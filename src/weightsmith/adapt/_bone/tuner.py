"""Bone as a PEFT method: layer and model, on top of PEFT's own MiSS classes.

PEFT's MiSS has the variants ``"bat"``, ``"miss"`` and ``"mini"``. Here they need less memory and time to train, can
be taken out of merged weights exactly, and work on Hugging Face's ``Conv1D`` and on convolutions; ``"bat-row"`` and
``pad`` are new. Adapters that PEFT can hold are saved as PEFT's ``MISS``, so that either library loads them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.miss import MissLayer, MissLinear, MissModel
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers, check_adapters_to_merge
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from weightsmith.adapt._bone import blocks
from weightsmith.adapt._bone.config import PEFT_NAMES, BoneConfig, BoneType
from weightsmith.adapt._bone.targets import CONVOLUTIONS, check_targets, has_weight, matrix_shape
from weightsmith.core.errors import LayerNotFoundError, NonFiniteError, UnsupportedModelError
from weightsmith.core.models import computed_by, without_fast_path
from weightsmith.core.sharding import refuse_sharded
from weightsmith.core.training import restored_on_error

__all__ = ["BoneLinear", "BoneModel"]

LOST_IN_ROUNDING = 0.01
"""Share of an update that may be lost when it is merged into half precision before the user is warned."""


class BoneLinear(MissLinear):
    """A layer with Bone adapters around it: a Linear, quantized or not, a ``Conv1D`` or a convolution.

    Adapters that are active together act one after the other, each on the weight the earlier ones made.
    """

    other_param_names = (*MissLayer.other_param_names, "bone_config")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BoneConfig, r: int = 0, **kwargs: Any) -> None:
        nn.Module.__init__(self)
        MissLayer.__init__(self, base_layer, **kwargs)
        groups, out, width = matrix_shape(self.get_base_layer())
        self.in_features, self.out_features = width, groups * out
        self.name = ""
        self.bone_config: dict[str, BoneConfig] = {}
        self.unmerged_weight: Tensor | None = None
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, config=config, **kwargs)

    @property
    def miss_fn(self) -> str | bool:
        """PEFT's name of the active adapter's variant, for its LoRA export."""
        return PEFT_NAMES[self._variant(self.active_adapters[0])]

    def update_layer(
        self, adapter_name: str, r: int, config: BoneConfig, inference_mode: bool = False, **kwargs: Any
    ) -> None:
        """Add an adapter."""
        groups, out, width = matrix_shape(self.get_base_layer())
        shapes = {
            "bat": (groups * math.ceil(out / r), r, r),
            "bat-row": (math.ceil(width / r), r, r),
            "miss": (r, groups * out),
            "mini": (r, config.mini_r),
        }
        assert config.variant is not None
        block = torch.zeros(shapes[config.variant])
        if config.init_weights is False:
            nn.init.kaiming_uniform_(block, a=math.sqrt(5))
        self.bone_config[adapter_name] = config
        self.miss_r[adapter_name], self.miss_mini_r[adapter_name] = r, config.mini_r
        self.miss_dropout[adapter_name] = nn.Dropout(config.miss_dropout) if config.miss_dropout else nn.Identity()
        self.miss_block[adapter_name] = nn.Parameter(block)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the layer with its active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapters = [name for name in self.active_adapters if name in self.miss_block]
        base = self.get_base_layer()
        if self.disable_adapters or self.merged or not adapters:
            y: Tensor = self.base_layer(x, *args, **kwargs)
            return y
        if isinstance(base, CONVOLUTIONS):
            return self._convolve(base, x, adapters)
        if all(self._variant(name) != "bat" for name in adapters):
            return self._factorized(x, adapters)
        self._check_no_dropout(adapters)
        trained = getattr(base.weight, "requires_grad", False)  # BatLinear has no gradient of the weight
        weight = self._matrix(base.weight if trained else self.get_base_weight())
        x, bias = (self._cast_input_dtype(tensor, self._computing_dtype(weight)) for tensor in (x, base.bias))
        if len(adapters) > 1 or trained:
            updated = self._updated(weight, adapters)
            return functional.linear(x, updated.to(x.dtype), bias)
        output: Tensor = blocks.BatLinear.apply(x, weight, self.miss_block[adapters[0]], bias)
        return output

    def get_delta_weight(self, adapter: str, orig_weight: Tensor, reverse: bool = False) -> Tensor:
        """Return what the adapter adds to a weight; as in PEFT, with ``reverse`` the weight before it was added."""
        if reverse:
            return self._like_weight(self._undo(self._matrix(orig_weight), adapter))
        matrix = self._matrix(orig_weight)
        updated = self._updated(matrix, [adapter])
        return self._like_weight(updated - matrix.to(updated.dtype))

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight; on bad values nothing is changed.

        Raises
        ------
        NonFiniteError
            If the blocks, or with ``safe_merge`` the merged weight, hold NaN or infinity.
        UnsupportedModelError
            If the base weight is quantized and cannot be written.
        """
        adapters = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.miss_block]
        if not adapters:
            return
        self.check_mergeable(adapters)
        old = self.get_base_weight()
        matrix = self._matrix(old)
        updated = self._updated(matrix, adapters)
        merged = self._like_weight(updated.to(old.dtype))
        if safe_merge and not bool(merged.isfinite().all()):
            raise NonFiniteError(f"the merged weight of layer {self.name!r}", do="Load a sound adapter.")
        if old.dtype in (torch.bfloat16, torch.float16):
            lost = torch.linalg.vector_norm(updated - self._matrix(merged)) / torch.linalg.vector_norm(updated - matrix)
            if lost > LOST_IN_ROUNDING:
                warnings.warn(
                    f"Merging into {old.dtype} rounds more than {LOST_IN_ROUNDING:.0%} of the update away; "
                    "load the base model in float32 to keep all of it.",
                    stacklevel=2,
                )
        if self.unmerged_weight is None and any(self.bone_config[name].keep_base for name in adapters):
            self.unmerged_weight = old.clone()
        self.set_base_weight(merged)
        self.merged_adapters.extend(adapters)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take all merged adapters out of the base weight: exactly with ``keep_base``, else by solving in float64.

        Raises
        ------
        UnsupportedModelError
            If a block ``I + B`` cannot be inverted; nothing is changed.
        """
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.get_base_weight()
        if self.unmerged_weight is not None:
            restored, self.unmerged_weight = self.unmerged_weight, None
        else:
            matrix = self._matrix(weight)
            for name in reversed(self.merged_adapters):
                matrix = self._undo(matrix, name)
            restored = self._like_weight(matrix.to(weight.dtype))
        self.set_base_weight(restored)
        self.merged_adapters.clear()

    def check_mergeable(self, adapters: Sequence[str]) -> None:
        """Refuse adapters that hold NaN or infinity, and base layers that cannot be written."""
        if not has_weight(self.get_base_layer()):
            kind = type(self.get_base_layer()).__name__
            raise UnsupportedModelError(f"cannot merge into {self.name!r}, a {kind}", do="Keep the adapter unmerged.")
        if self.quantization_backend is None and (how := computed_by(self.get_base_layer())):
            raise UnsupportedModelError(
                f"cannot merge into {self.name!r}: its weight is computed",
                found=how,
                do="Keep the adapter unmerged, or fold the weight into a plain one before the adapter is added.",
            )
        for adapter in adapters:
            if adapter in self.miss_block and not bool(self.miss_block[adapter].isfinite().all()):
                raise NonFiniteError(f"adapter {adapter!r} of layer {self.name!r}", do="Load a sound adapter.")

    def check_invertible(self) -> None:
        """Refuse merged adapters that cannot be taken out again."""
        if self.unmerged_weight is None:
            for name in self.merged_adapters:
                if self._variant(name).startswith("bat"):
                    rows = self._variant(name) == "bat-row"
                    blocks.check_invertible(self.miss_block[name], self.in_features, rows=rows)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT's LoRA export can read this layer: exactly for miss and mini, by SVD for bat on a Linear."""
        if isinstance(self.get_base_layer(), CONVOLUTIONS) or self._variant(adapter_name) == "bat-row":
            return False
        additive = not self._variant(adapter_name).startswith("bat")
        same = PEFT_NAMES[self._variant(adapter_name)] == self.miss_fn
        plain = isinstance(self.get_base_layer(), nn.Linear) and self.quantization_backend is None
        return same and (additive or plain)

    def _variant(self, name: str) -> str:
        variant = self.bone_config[name].variant
        assert variant is not None
        return variant

    def _updated(self, matrix: Tensor, adapters: Sequence[str]) -> Tensor:
        with torch.autocast(matrix.device.type, enabled=False):
            for name in adapters:
                matrix = _APPLY[self._variant(name)](matrix, self.miss_block[name])
        return matrix

    def _undo(self, matrix: Tensor, name: str) -> Tensor:
        return _UNDO[self._variant(name)](matrix, self.miss_block[name])

    def _factorized(self, x: Tensor, adapters: Sequence[str]) -> Tensor:
        """All but bat-col, which needs the weight: only the base layer's own forward."""
        if not adapters:
            output: Tensor = self.base_layer(x)
            return output
        *earlier, last = adapters
        if self._variant(last) == "bat-row":
            return blocks.row_linear(lambda moved: self._factorized(moved, earlier), x, self.miss_block[last])
        y = self._factorized(x, earlier)
        if self.quantization_backend is not None:
            y = self.quantization_backend.maybe_clone_base_result(y)
        return blocks.add_shards(y, self.miss_dropout[last](x), self.miss_block[last])

    def _convolve(self, base: nn.Module, x: Tensor, adapters: Sequence[str]) -> Tensor:
        self._check_no_dropout(adapters)
        weight = self.get_base_weight()
        updated = self._like_weight(self._updated(self._matrix(weight), adapters).to(weight.dtype))
        output: Tensor = torch.func.functional_call(base, {"weight": updated}, (x,))
        return output

    def _check_no_dropout(self, adapters: Sequence[str]) -> None:
        if self.training and any(self.bone_config[name].miss_dropout for name in adapters):
            raise UnsupportedModelError(
                "dropout needs an additive adapter on a linear layer",
                found=f"{type(self.get_base_layer()).__name__} with {[self._variant(name) for name in adapters]}",
                do="Set miss_dropout=0.",
            )

    def _computing_dtype(self, weight: Tensor) -> torch.dtype:
        device = weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype

    def _matrix(self, weight: Tensor) -> Tensor:
        """The weight as ``[out, in]``, or ``[groups, out, in]`` for a convolution of several groups."""
        base = self.get_base_layer()
        if isinstance(base, Conv1D):
            return weight.T
        groups = getattr(base, "groups", 1)
        matrix = weight.flatten(1)
        return matrix.unflatten(0, (groups, -1)) if groups > 1 else matrix

    def _like_weight(self, matrix: Tensor) -> Tensor:
        base = self.get_base_layer()
        return matrix.T.contiguous() if isinstance(base, Conv1D) else matrix.reshape(self.get_base_weight().shape)

    def __repr__(self) -> str:
        return "bone." + nn.Module.__repr__(self)


class BoneModel(MissModel):
    """The model that ``get_peft_model`` builds for a :class:`BoneConfig`; everything is checked before it changes."""

    def _prepare_model(self, peft_config: BoneConfig, model: nn.Module) -> None:
        _maybe_include_all_linear_layers(peft_config, model)
        if peft_config.target_modules == DUMMY_TARGET_MODULES:
            return
        inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
        modules = {
            name: module
            for name, module in model.named_modules()
            if name and not (inside and name.startswith(inside)) and self._check_target_module_exists(peft_config, name)
        }
        for name, module in modules.items():
            if isinstance(module, BaseTunerLayer) and not isinstance(module, MissLayer):
                raise UnsupportedModelError(
                    f"layer {name!r} has an adapter of another method",
                    found=type(module).__name__,
                    do="Make it part of the weights first: model.merge_and_unload().",
                )
        targets = {
            name: module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            for name, module in modules.items()
        }
        if not targets:
            linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
            raise LayerNotFoundError(
                f"no layer matches target_modules={peft_config.target_modules!r}",
                found=f"{len(linear)} linear layers such as {linear[:5]}",
                do="Name the layers to adapt.",
            )
        check_targets(targets, model, peft_config)
        peft_config.only_linear = all(not isinstance(module, (Conv1D, *CONVOLUTIONS)) for module in targets.values())

    @staticmethod
    def _create_new_module(config: BoneConfig, adapter_name: str, target: nn.Module, **kwargs: Any) -> BoneLinear:
        return BoneLinear(target, adapter_name, config=config, **kwargs)

    def _create_and_replace(
        self,
        config: BoneConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        super()._create_and_replace(config, adapter_name, target, target_name, parent, current_key, **kwargs)
        getattr(parent, target_name).name = current_key

    def inject_adapter(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Adapt all layers, or none."""
        refuse_sharded(model, do="Add adapters before fully_shard(model).")
        with restored_on_error(model, values=False):
            without_fast_path(model)
            super().inject_adapter(model, *args, **kwargs)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge into all layers, or into none."""
        self._check_mergeable(adapter_names)
        with restored_on_error(self.model):
            super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        if merge:
            self._check_mergeable(kwargs.get("adapter_names"))
        with restored_on_error(self.model, values=merge):
            unloaded: nn.Module = super()._unload_and_optionally_merge(merge=merge, **kwargs)
        return unloaded

    def _check_mergeable(self, adapter_names: list[str] | None) -> None:
        refuse_sharded(self.model, do="Save the adapter (get_model_state_dict), and merge it into a whole model.")
        for layer in self._layers():
            layer.check_mergeable(layer.active_adapters if adapter_names is None else adapter_names)

    def unmerge_adapter(self) -> None:
        """Take the merged adapters out of all layers, or of none."""
        for layer in self._layers():
            layer.check_invertible()
        with restored_on_error(self.model):
            super().unmerge_adapter()

    def _layers(self) -> list[BoneLinear]:
        return [module for module in self.model.modules() if isinstance(module, BoneLinear)]

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: BoneConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        # up to PEFT 0.18 the blocks had the name of the paper's first versions
        renamed = {key.replace(".bone_block", ".miss_block"): value for key, value in state_dict.items()}
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, renamed)
        return remapped


_APPLY = {
    "bat": blocks.apply_bat,
    "bat-row": blocks.apply_bat_row,
    "miss": blocks.apply_miss,
    "mini": blocks.apply_miss,
}
_UNDO = {"bat": blocks.undo_bat, "bat-row": blocks.undo_bat_row, "miss": blocks.undo_miss, "mini": blocks.undo_miss}

# register_peft_method only takes names of PEFT's own enum; these are the tables it fills
PEFT_TYPE_TO_CONFIG_MAPPING[BoneType.BONE] = BoneConfig
PEFT_TYPE_TO_TUNER_MAPPING[BoneType.BONE] = BoneModel
PEFT_TYPE_TO_PREFIX_MAPPING[BoneType.BONE] = BoneModel.prefix
