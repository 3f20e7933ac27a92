"""What the names of weights tell: layers, experts, heads, towers, and what runtimes load as one matrix."""

import re

from pipelines.checkpoint.headers import TensorInfo

ONE_BY_ONE = re.compile(r"(.*\.)?experts\.\d+\.")
"""How the names of experts begin that a checkpoint stores one by one."""


ROUTER = re.compile(
    r"(^|\.)(router(\.\w+)?|(mlp|block_sparse_moe|feed_forward|moe|mixer)\.gate(\.wg)?|shared_expert_gate)$"
)
NOT_LINEAR = re.compile(r"(^|[._])(embed\w*|\w*embeddings?|wte|wpe|\w*norm\d*|ln_\w+|rotary\w*)$")
"""Last name components of two-dimensional weights that no runtime calls linear."""
NOT_TEXT = re.compile(
    r"(^|\.)(vision\w*|visual|image_\w+|audio\w*|multi_modal_projector|mm_projector|embed_vision|embed_audio|mtp\w*)\."
)
"""Towers beside the language model and multi-token prediction: kept as they are."""
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
HEAD = "lm_head"
FUSED: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Last names of modules that read the same input, and that runtimes load as one matrix."""
EXPERTS = re.compile(r"(.*\.experts)(\.|$)")


def matches(pattern: str, name: str, last_layer: int) -> bool:
    """Tell whether `pattern` of a recipe means module `name` of a model whose last decoder layer is `last_layer`."""
    if pattern.startswith("re:"):
        return expression_matches(pattern, name)
    if pattern.startswith("layer:"):
        number = int(pattern.removeprefix("layer:"))
        return layer_number(name) == (number if number >= 0 else last_layer + 1 + number)
    return name == pattern or name.endswith(f".{pattern}")


def expression_matches(pattern: str, name: str) -> bool:
    """Tell whether `pattern` is `re:` and a regular expression that matches `name` from its start."""
    return pattern.startswith("re:") and re.match(pattern[3:], name) is not None


def fused_set(name: str) -> tuple[str, ...]:
    """Return the last names of the modules that runtimes load as one matrix with module `name`, its own among them;
    none if it is loaded alone."""
    last = name.rpartition(".")[2]
    return next((fused for fused in FUSED if last in fused), ())


def layer_number(name: str) -> int:
    """Return the number of the decoder layer that module `name` is in, -1 if in none."""
    found = LAYER.search(name)
    return int(found[1]) if found else -1


def is_linear(tensor: TensorInfo) -> bool:
    """Tell whether a tensor is, by its name, the weight of what some runtime has as a linear module, or those of all
    experts in one."""
    name = tensor.name.removesuffix(".weight")
    if len(tensor.shape) == 3:
        return EXPERTS.match(name) is not None
    return tensor.name.endswith(".weight") and len(tensor.shape) == 2 and not NOT_LINEAR.search(name)
