"""The verify stage: an artifact is held against its plan, by the module for its kind of file."""

from pipelines.device import Dtype, choose_device
from pipelines.dtypes import choose_dtype
from pipelines.quantize import Artifact
from pipelines.verification import Verification


def verify(artifact: Artifact, device: str | None = None, dtype: Dtype = "auto") -> Verification:
    """Check an artifact against its plan and its source. Both compute in `dtype` (`pipelines.device.choose_dtype`).

    Raises:
        QuantgateError: with everything that is wrong with it.
    """
    device = choose_device(device)
    computes = choose_dtype(dtype, device, artifact.source)
    inputs = {"artifact": artifact.files, "source": artifact.source.digest, "device": device, "dtype": computes}
    if artifact.gguf:
        from pipelines import gguf_verify

        return gguf_verify.verify(artifact, device, inputs)
    from pipelines import verify as checkpoint_verify

    return checkpoint_verify.verify(artifact, device, computes, inputs)
