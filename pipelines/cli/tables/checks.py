"""The findings when an artifact was held against its plan, its proof or another runtime."""

from typing import TYPE_CHECKING

from pipelines.cli.columns import console
from pipelines.cli.tables.lists import show_facts, show_path
from pipelines.cli.tables.runs import show_stages
from pipelines.core.text import size
from pipelines.publishing.bundle import Checked
from pipelines.quantization.artifact import Artifact
from pipelines.reporting.package import stage_record
from pipelines.reporting.sentences import distance_line, reader_line, verdict_line
from pipelines.verification.results import Verification

if TYPE_CHECKING:
    from pipelines.runtimes.vllm import Comparison  # it needs lm-eval


def show_verification(checked: Verification) -> None:
    """Print what the verify stage measured."""
    worst = min(checked.layers, key=lambda layer: layer.sqnr)
    show_facts(
        "verified",
        {
            "layers": f"{checked.quantized} quantized, {checked.kept} tensors kept",
            "weights": f"{size(checked.bytes_before)} → {size(checked.bytes_after)}",
            "bits per weight": f"{checked.bits_per_weight:.2f}",
            "worst layer": f"{worst.module}, {worst.sqnr:.1f} dB signal to noise",
            "loss": f"{checked.loss_before:.3f} → {checked.loss_after:.3f} nats per token",
            "agreement": f"{checked.agreement:.1%} of the next tokens",
            "continuation": checked.continuation,
            "distance": distance_line(checked.distance),
            "reader": reader_line(checked.reader),
        },
    )


def show_agreement(compared: "Comparison") -> None:
    """Print what vLLM computed beside what transformers did."""
    show_facts(
        f"vLLM {compared.version} against transformers, {compared.tokens} tokens",
        {
            "difference": f"{compared.mean_difference:.3f} nats in the mean, {compared.max_difference:.3f} at most; "
            f"a mean of {compared.tolerance} is tolerated",
            "perplexity": f"{compared.perplexity_vllm:.3f} against {compared.perplexity_transformers:.3f}",
            "continuation": f"{compared.same_tokens} tokens alike",
            "vLLM writes": compared.continuation_vllm.strip(),
            "transformers writes": compared.continuation_transformers.strip(),
            "agrees": "yes" if compared.agrees else "NO",
        },
    )


def show_checked(checked: Checked) -> None:
    """Print that nothing was found wrong in a published artifact."""
    gate = checked.manifest.gate
    out = console()
    out.print(f"files      {checked.files}, {size(checked.bytes)}: every digest as published")
    out.print(f"verdict    {verdict_line(gate)} Judged again from its documents: the same.", soft_wrap=True)
    if gate.forced:
        out.print(f"forced     published without a PASS: {gate.forced}", style="yellow")
    out.print(f"source     {checked.manifest.model.label}, recipe {checked.manifest.recipe.name}")
    out.print(f"signature  {checked.signature}")


def show_quantized(artifact: Artifact, checked: Verification) -> None:
    """Print what quantizing and verifying cost, the artifact's size, and where it lies."""
    show_stages((stage_record("quantize", (artifact,)), stage_record("verify", (checked,))))
    print(f"weights    {size(checked.bytes_before)} → {size(checked.bytes_after)}")
    show_path("artifact", artifact.checkpoint)
