"""The range of keys and values, for a cache of them in FP8."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from pipelines.core.errors import BadInput, bad_input


class CacheRange:
    """The largest magnitudes of an attention module's keys (after rotary embedding) and values, while it is watched."""

    def __init__(self, model: Any, attention: Any) -> None:
        from compressed_tensors.modeling.kvcache import (
            initialize_hooked_kv_cache,
            register_key_hook,
            register_value_hook,
        )

        self.keys = self.values = torch.zeros(())
        before = set(attention._forward_pre_hooks)
        initialize_hooked_kv_cache(model, attention)
        self._attention, self._added = attention, set(attention._forward_pre_hooks) - before

        def see_keys(_: Any, keys: torch.Tensor) -> None:
            self.keys = torch.maximum(self.keys.to(keys.device), keys.abs().amax().float())

        def see_values(_: Any, values: torch.Tensor) -> None:
            self.values = torch.maximum(self.values.to(values.device), values.abs().amax().float())

        register_key_hook(attention, see_keys)
        register_value_hook(attention, see_values)

    def close(self) -> None:
        """Take the hooks off again."""
        for hook in self._added:
            del self._attention._forward_pre_hooks[hook]
        del self._attention.kv_cache


def watch_caches(model: Any, attentions: Mapping[str, Any]) -> dict[str, CacheRange]:
    """Return, for each attention module by name, the range of the keys and values of the forward passes to come.

    Raises:
        BadInput: transformers does not show what one of them caches.
    """
    for name, attention in attentions.items():
        takes = inspect.signature(attention.forward).parameters
        if not {"past_key_values", "past_key_value"} & takes.keys():
            raise unseen_cache(name)
    return {name: CacheRange(model, attention) for name, attention in attentions.items()}


def unseen_cache(attention: str) -> BadInput:
    """Return the error for an attention module in which transformers does not show what it caches."""
    what = "is of a class in transformers that does not show its keys and values, so that they cannot be measured"
    return bad_input(f"module {attention}", what, "use a recipe without kv_cache, like fp8 or fp8-static")
