"""The `quantization_config` that tells runtimes what each module of an artifact is."""

import re
from typing import Any

from pipelines.checkpoint.names import LAYER, NOT_TEXT, ONE_BY_ONE
from pipelines.formats.schemes import quantization_config
from pipelines.planning.plan import CheckpointPlan


def written_config(plan: CheckpointPlan) -> dict[str, Any]:
    """Return the `quantization_config` of the artifact that `plan` describes."""
    addresses = module_addresses(plan)
    modules = {
        address: (module.scheme, module.group_size)
        for module in plan.modules
        if module.scheme
        for address in addresses[module.name]
    }
    kept = {address for module in plan.modules if not module.scheme for address in addresses[module.name]}
    head = set() if plan.head in {module.address for module in plan.modules} else {plan.head}
    return quantization_config(modules, sorted(kept | head), bool(plan.attentions))


def module_addresses(plan: CheckpointPlan) -> dict[str, set[str]]:
    """Return each module → what means it in a `quantization_config`: its name, and the one that transformers has for
    it."""
    inside = any(NOT_TEXT.search(module.name) for module in plan.modules)
    return {
        module.name: {_address_inside(module.name)}
        if inside or ONE_BY_ONE.match(module.name)
        else {module.name, module.address}
        for module in plan.modules
    }


def _address_inside(name: str) -> str:
    """Return a pattern for a module of a model that has towers beside its language model, where names begin otherwise
    on the hub (`language_model.model.layers`), in transformers (`model.language_model.layers`) and in vLLM. Experts are
    meant together, all of a layer: Mixtral's are called `block_sparse_moe.experts.0.w1` on the hub, and in vLLM
    `block_sparse_moe.experts.0.gate_proj`; transformers looks for their format by the word `experts`."""
    if tower := NOT_TEXT.search(name):
        return rf"re:(.*\.)?{tower[2]}\..*"
    inside = LAYER.search(name)
    if ONE_BY_ONE.match(name):
        return rf"re:(.*\.)?{re.escape(inside[0].lstrip('.')) if inside else ''}(.*\.)?experts\..*"
    tail = name[inside.start() :].lstrip(".") if inside else name.rpartition(".")[2]
    return rf"re:(.*\.)?{re.escape(tail)}$"
