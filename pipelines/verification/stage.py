"""The verify stage: an artifact is held against its plan, by the module for its kind of file."""

from pipelines.checkpoint.dtypes import choose_dtype
from pipelines.core.device import Dtype, choose_device
from pipelines.quantization.artifact import Artifact
from pipelines.verification.results import Verification


def verify(artifact: Artifact, device: str | None = None, dtype: Dtype = "auto") -> Verification:
    """Check an artifact against its plan and its source. Both compute in `dtype`, as `choose_dtype` says.

    Raises:
        QuantgateError: with everything that is wrong with it.
    """
    device = choose_device(device)
    computes = choose_dtype(dtype, device, artifact.source)
    inputs = {"artifact": artifact.files, "source": artifact.source.digest, "device": device, "dtype": computes}
    if artifact.gguf:
        from pipelines.verification import gguf as gguf_verification

        return gguf_verification.verify(artifact, device, inputs)
    from pipelines.verification import checkpoint as checkpoint_verification

    return checkpoint_verification.verify(artifact, device, computes, inputs)
