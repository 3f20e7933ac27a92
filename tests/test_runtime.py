"""What evaluation runs against what transformers runs by itself."""

import torch
from transformers import AutoModelForCausalLM

from pipelines.checkpoint import Checkpoint
from pipelines.plan import make_plan
from pipelines.quantize import quantize
from pipelines.runtime import fp8_round, load_for_inference


def test_rounding_is_compressed_tensors_own_bit_for_bit() -> None:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    torch.manual_seed(0)
    arguments = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True, symmetric=True)
    spread = torch.logspace(-20, 20, 64).unsqueeze(1)
    for values in (torch.randn(2, 64, 96) * spread, torch.randn(1, 4, 96).pow(9), torch.zeros(1, 2, 8)):
        x = values.to(torch.bfloat16)
        scale, zero = compute_dynamic_scales_and_zp(x, arguments, torch.nn.Linear(1, 1))
        assert torch.equal(fp8_round(x), fake_quantize(x, scale, zero, arguments))


def test_logits_equal_transformers_own_bit_for_bit(smollm2: Checkpoint) -> None:
    artifact = quantize(make_plan("fp8", smollm2))
    ids = torch.arange(100, 164).view(2, 32)
    with torch.inference_mode():
        ours = load_for_inference(artifact.checkpoint, "cpu")(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(artifact.checkpoint)(ids).logits
    assert torch.equal(ours, theirs)
