"""The engine bitsandbytes: NF4 (Dettmers et al. 2305.14314) as transformers stores it, rounded from file to file."""

from pathlib import Path

from pipelines.calibration.tokens import CalibrationTokens
from pipelines.checkpoint.dtypes import NAMES
from pipelines.core import progress
from pipelines.core.device import choose_device
from pipelines.formats import nf4
from pipelines.planning.plan import CheckpointPlan
from pipelines.quantization.files import ArtifactFiles, copy_kept, read_rows
from pipelines.quantization.written import Written, named_kept


def quantize(plan: CheckpointPlan, tokens: CalibrationTokens | None, folder: Path) -> Written:
    """Write the artifact's weight files into `folder`; one module is in memory at a time."""
    import bitsandbytes
    from bitsandbytes.functional import quantize_4bit

    assert tokens is None
    device = choose_device(None)
    source = {tensor.name: tensor for tensor in plan.checkpoint.tensors}
    with ArtifactFiles(plan, folder) as files:
        copy_kept(plan, files)
        for module in progress.track(plan.quantized.values(), "quantize", "layer"):
            weight = read_rows(plan.checkpoint.folder, source[f"{module.name}.weight"]).to(device)
            packed, state = quantize_4bit(weight, blocksize=module.group_size, quant_type="nf4")
            files.write(f"{module.name}.weight", packed.cpu())
            for name, part in state.as_dict(packed=True).items():
                files.write(f"{module.name}.weight.{name}", part.cpu())
    dtype = NAMES[next(iter(plan.quantized.values())).dtype]
    config = nf4.quantization_config([*named_kept(plan), plan.head], dtype)
    return Written(quantization_config=config, engine=f"bitsandbytes {bitsandbytes.__version__}")
