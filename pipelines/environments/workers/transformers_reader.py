"""A finished artifact in plain transformers, as whoever downloads it loads it: for `pipelines.verification.reader`.

The process that serves this cannot import quantgate, so that nothing of ours mends what it reads.
"""

import sys
from collections.abc import Callable
from typing import Any

Report = Callable[[int, int, str], None]
KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")


class Reader:
    """One loaded model."""

    def __init__(self) -> None:
        self._model: Any = None

    def load(self, folder: str, family: str, device: str) -> dict[str, Any]:
        """Load the checkpoint in `folder` by the auto class `family`; return what transformers says of its tensors, and
        its type."""
        import transformers

        place: dict[str, Any] = {} if device == "cpu" else {"device_map": {"": device}}
        model, said = getattr(transformers, family).from_pretrained(
            folder, dtype="auto", trust_remote_code=False, use_safetensors=True, output_loading_info=True, **place
        )
        self._model = model.eval()
        keys = {name: sorted(key if isinstance(key, str) else key[0] for key in said[name]) for name in KEYS}
        return {**keys, "version": transformers.__version__, "dtype": str(model.dtype).removeprefix("torch.")}

    def tokens(self, folder: str, text: str) -> list[int]:
        """Return the ids of `text` by the tokenizer in `folder`."""
        from transformers import AutoTokenizer

        ids: list[int] = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(text)["input_ids"]
        return ids

    def widen(self, dtype: str) -> None:
        """Compute in `dtype` from now on, and round no inputs of linear modules; weights stay what they are."""
        import torch

        self._model.to(getattr(torch, dtype))
        for module in self._model.modules():
            if isinstance(module, torch.nn.Linear):
                setattr(module, "quantization_enabled", False)  # noqa: B010  # compressed-tensors looks for it

    def compute(self, ids: list[int], to: str, outputs: bool) -> list[str]:
        """Write what `compute` returns into the safetensors file `to`; return its names in their order."""
        from safetensors.torch import save_file

        found = compute(self._model, ids, outputs)
        save_file(found, to)
        return list(found)


LOGITS = "logits"


def compute(model: Any, ids: list[int], outputs: bool = False) -> dict[str, Any]:
    """Return the `LOGITS` (tokens, vocabulary) that follow `ids`, after what each module gives if `outputs` are asked
    for, in the order in which they finish."""
    import torch

    found: dict[str, torch.Tensor] = {}
    modules = [(name, module) for name, module in model.named_modules() if name and outputs]
    hooks = [module.register_forward_hook(_keep(name, found)) for name, module in modules]
    with torch.no_grad():  # not `inference_mode`: what is dequantized now will be widened
        found[LOGITS] = _plain(model(torch.tensor([ids], device=model.device), use_cache=False).logits[0])
    for hook in hooks:
        hook.remove()
    return found


def _keep(name: str, found: dict[str, Any]) -> Callable[..., None]:
    """Return a forward hook that puts a module's output into `found`: its first one, if it has several."""

    def hook(_: Any, __: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if hasattr(first, "is_floating_point") and first.is_floating_point():
            found[name] = _plain(first)

    return hook


def _plain(tensor: Any) -> Any:
    """Return a copy in float32, where nothing shares its memory."""
    import torch

    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def commands(_: Report) -> dict[str, Callable[..., Any]]:
    """Return the requests that the reader answers (name → function), and bar the import of quantgate."""
    sys.modules["pipelines"] = None  # type: ignore[assignment]  # from now on, importing it fails
    reader = Reader()
    return {"load": reader.load, "tokens": reader.tokens, "widen": reader.widen, "compute": reader.compute}
