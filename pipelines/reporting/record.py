"""The record of a run, `quantgate.json`: what other programs read.

Its schema is docs/quantgate.schema.json; a change that breaks its readers raises `SCHEMA_VERSION`. Records of version
1, which know the accuracy alone, are still read.
"""

from typing import Any, Literal

from pydantic import Field

from pipelines.core.cache import digest
from pipelines.core.device import ComputeDtype
from pipelines.core.strict_yaml import Frozen
from pipelines.formats.gguf_types import TensorType
from pipelines.formats.schemes import SchemeName
from pipelines.gating.measures import Measure
from pipelines.gating.verdict import Kept, TaskVerdict
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.suite import HubDataset, Policy, ScoreKind, Suite
from pipelines.runtimes.distance import Distance
from pipelines.verification.reader import Reader
from pipelines.verification.results import LayerError

SCHEMA_VERSION: Literal[2] = 2
RECORD = "quantgate.json"
"""File name of a published artifact's record."""
REPORT = "report.html"
CARD = "README.md"


class ModelRecord(Frozen):
    """The source checkpoint."""

    label: str
    hub_id: str | None
    revision: str | None
    licence: str | None
    """Licence as its card declares it."""
    spdx: str | None = None
    """Licence as an SPDX expression; None if the card names none."""
    digest: str
    files: dict[str, str]
    parameters: int
    notes: tuple[str, ...]


class SizeRecord(Frozen):
    """Bytes of all tensors, before and after, and bits that each weight takes after."""

    bytes_before: int
    bytes_after: int
    bits_per_weight: float


class ModulesRecord(Frozen):
    """Linear modules that became the same, for the same reason."""

    scheme: SchemeName | None
    """Scheme that they became; None where they are kept in the source's precision."""
    group_size: int | None
    reason: str
    """Reason why they are kept, or what was changed to quantize them; mostly empty."""
    count: int


class TensorsRecord(Frozen):
    """Tensors of a GGUF that became the same, for the same reason."""

    type: TensorType
    reason: str
    """Reason why they are not of the type that the file type gives them; mostly empty."""
    count: int


class CalibrationRecord(Frozen):
    """The text that the method saw."""

    set: str
    source: dict[str, Any]
    revision: str
    rows: tuple[str, ...]
    samples: int
    tokens: int
    digest: str
    gate_documents: int
    gate_documents_overlapping: int
    """Documents of the gate's suite that share 13 consecutive words with the calibration text."""


class GateRecord(Frozen):
    """The verdict; `verdict`, `certified`, `retention` and `lower_bound` are what other programs read."""

    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    certified: bool
    statistic: ScoreKind = "accuracy"
    """Statistic whose retention must be shown to be above the target."""
    retention: float | None
    """Point estimate of that statistic's retention over the suite."""
    lower_bound: float | None
    upper_bound: float | None
    accuracy: Kept | None = None
    """What is kept of the accuracy; null in records of version 1, which say it in the three fields above."""
    expected: Kept | None = None
    """What is kept of the expected score; null where a task has none."""
    target: float
    reasons: tuple[str, ...]
    more_documents: int | None
    confidence: float = 0.95
    """Confidence of each one-sided bound."""
    spared: int = 0
    """Documents of the suite that were not evaluated, because the verdict was shown without them."""
    measures: tuple[Measure, ...] = ()
    """Measures more sensitive than accuracy, with their bounds and the policy's limits."""
    forced: str | None = None
    """Reason given for publishing without a PASS; null where that was not done."""
    policy: Policy
    tasks: tuple[TaskVerdict, ...]


class EvaluationRecord(Frozen):
    """The evaluation that the verdict rests on."""

    suite: Suite
    runtime: str
    device: str
    dtype: ComputeDtype | None = None
    """Type that baseline and artifact computed in; null where the runtime chooses for each product."""
    task_versions: dict[str, str]
    metrics: dict[str, str]
    shots: dict[str, int]
    splits: dict[str, str] = Field(default={})
    data: dict[str, str]
    datasets: dict[str, HubDataset] = Field(default={})
    """Names that the hub has for the documents of tasks, where they are known."""
    source_in_transformers: dict[str, float] = Field(default={})
    """Mean score of the source for each task, where baseline and artifact ran in llama.cpp."""


class VerificationRecord(Frozen):
    """The measurements on the artifact's files."""

    quantized: int
    kept: int
    dropped: tuple[str, ...]
    loss_before: float
    loss_after: float
    agreement: float
    continuation: str
    layers: tuple[LayerError, ...]
    distance: Distance | None = None
    """Distance from the source on held-out text; of a GGUF, from the unquantized one."""
    reader: Reader | None = None
    """Program that loaded it as its users will; null in records of earlier versions, which did not ask."""


class StageRecord(Frozen):
    """The cost of a stage when it ran."""

    stage: str
    seconds: float = Field(allow_inf_nan=False)
    peak_memory: int
    peak_gpu_memory: int = 0
    reused: bool


class Manifest(Frozen):
    """`quantgate.json`: everything that went into an artifact, and what came of it."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    created: str
    quantgate: str
    commit: str | None
    model: ModelRecord
    recipe: Recipe
    size: SizeRecord
    modules: tuple[ModulesRecord, ...] = ()
    tensors: tuple[TensorsRecord, ...] = ()
    gate: GateRecord
    evaluation: EvaluationRecord
    calibration: CalibrationRecord | None
    verification: VerificationRecord
    files: dict[str, str]
    """SHA-256 of each file of the artifact but this one, the card and SHA256SUMS."""
    stages: tuple[StageRecord, ...]
    expected_memory: dict[str, int] = Field(default={})
    """Stage → the bytes of memory that the plan expected it to take."""
    versions: dict[str, str]
    engine: str = ""
    """Name and version of the engine, if it is another project's."""
    hardware: dict[str, str]

    @property
    def bits_per_weight_before(self) -> float:
        """Bits that the source stores for each of its parameters; 0 where it has none."""
        return self.size.bytes_before * 8 / self.model.parameters if self.model.parameters else 0.0

    @property
    def artifact_digest(self) -> str:
        """Digest over the artifact's files: the card names it, so that it cannot be another artifact's."""
        return digest(self.files)
