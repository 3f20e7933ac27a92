"""The table of the methods: from what a recipe says to what the engine asks."""

from typing import assert_never

from pipelines.quantization.methods.awq import awq
from pipelines.quantization.methods.gptq import gptq
from pipelines.quantization.methods.interface import CalibratedMethod
from pipelines.quantization.methods.rtn import rtn
from pipelines.recipe.methods import Awq, Gptq, Method, Rtn


def choose_method(settings: Method) -> CalibratedMethod:
    """Return the method that a recipe names, with the recipe's settings."""
    match settings:
        case Rtn():
            return rtn()
        case Gptq():
            return gptq(settings)
        case Awq():
            return awq()
    assert_never(settings)
