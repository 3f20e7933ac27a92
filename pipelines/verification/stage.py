"""The verify stage, which holds an artifact against its plan: by `checkpoint` or by `gguf`, as the plan chose."""

from pipelines.checkpoint.dtypes import choose_dtype
from pipelines.core.device import Dtype, choose_device
from pipelines.quantization.artifact import Artifact, CheckpointArtifact, GgufArtifact
from pipelines.verification.results import Verification


def verify(artifact: Artifact, device: str | None = None, dtype: Dtype = "auto") -> Verification:
    """Check an artifact against its plan and its source. Both compute in `dtype`, as `choose_dtype` says.

    Raises:
        QuantgateError: with everything that is wrong with it.
    """
    device = choose_device(device)
    computes = choose_dtype(dtype, device, artifact.source)
    inputs = {"artifact": artifact.files, "source": artifact.source.digest, "device": device, "dtype": computes}
    match artifact:
        case GgufArtifact():
            from pipelines.verification import gguf

            return gguf.verify(artifact, device, inputs)
        case CheckpointArtifact():
            from pipelines.verification import checkpoint

            return checkpoint.verify(artifact, device, computes, inputs)
