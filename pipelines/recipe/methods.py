"""The methods of quantizing weights that a recipe may name, each with its settings."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipelines.core.strict_yaml import Frozen
from pipelines.environments.engines import ENGINES, Engine, engine_of
from pipelines.formats.gguf_types import NEEDS_IMATRIX, FileType, Mixture, TensorType
from pipelines.formats.schemes import OWN_SCHEMES, SCHEMES, SMALLEST_GROUP, SchemeName

ModulePattern = str
"""Pattern of modules: a full name or its end (`lm_head`), `re:` and a regular expression matched from the name's start,
or `layer:N`: everything in decoder layer N, where -1 is the last."""
OnIndivisible = Literal["error", "skip", "shrink"]


def _check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Return `patterns`; raise ValueError for one that means nothing."""
    for pattern in patterns:
        if not pattern.strip():
            raise ValueError("a pattern is empty and means no module; leave it out, or name one, for example lm_head")
        if pattern.startswith("layer:") and not re.fullmatch(r"layer:-?\d+", pattern):
            raise ValueError(f"'{pattern}' is not of the form layer:N, for example layer:0 or layer:-1")
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
    return patterns


Patterns = Annotated[tuple[ModulePattern, ...], AfterValidator(_check_patterns)]


class _Target(Frozen):
    """A scheme with its group size, where the scheme leaves one to choose."""

    scheme: SchemeName
    """Number formats of weights and activations, by compressed-tensors' name where it has one (docs/recipes.md)."""

    group_size: int | None = Field(default=None, gt=0)
    """Input columns that share a scale, or the side of a block, where the scheme leaves that open; a multiple of 16,
    128 unless given."""

    @model_validator(mode="after")
    def _group_size_fits_scheme(self) -> Self:
        scheme = SCHEMES[self.scheme]
        if not scheme.resizable and self.group_size is not None:
            fixed = scheme.weights.group_size
            why = f"has groups of {fixed}" if fixed else "has one scale per channel"
            raise ValueError(f"group_size does not apply to {self.scheme}, which {why}; leave it out")
        if self.group_size and self.group_size % SMALLEST_GROUP:
            what = f"group_size {self.group_size} is no multiple of {SMALLEST_GROUP}"
            raise ValueError(f"{what}; give one, for example 32, 64 or 128")
        if scheme.resizable and self.group_size is None:
            object.__setattr__(self, "group_size", scheme.weights.group_size)  # a copy would be lost
        return self


class Rule(_Target):
    """Modules that get another scheme than the rest."""

    match: Patterns = Field(min_length=1)
    """Patterns as in `ignore`. A pattern that matches nothing is an error."""


class _Quantize(_Target):
    """The settings that every method has."""

    rules: tuple[Rule, ...] = ()
    """Exceptions from `scheme`; the first that matches a module decides."""

    ignore: Patterns = ("lm_head",)
    """Linear modules that stay in the source's dtype. A pattern that matches nothing is an error."""

    on_indivisible: OnIndivisible = "error"
    """Action when the group size does not divide a layer's width: refuse, keep the layer in 16 bits,
    or take the largest power of two that divides."""

    kv_cache: Literal["FP8"] | None = None
    """Keys and values in FP8 (E4M3), one measured scale for each layer's keys and one for its values."""

    engine: Engine = "quantgate"
    """Program that quantizes. The engines of other projects run in environments of their own (`quantgate env list`),
    but for bitsandbytes."""

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        method = str(getattr(self, "method", ""))
        if self.engine == "quantgate":
            if strangers := [scheme for scheme in self.schemes if scheme not in OWN_SCHEMES]:
                raise ValueError(f"{strangers[0]} is quantized by engine {engine_of(strangers[0])} only")
            return self
        offered = ENGINES[self.engine].schemes
        if self.scheme not in offered.get(method, ()):
            can = "; ".join(f"{name}: {', '.join(known)}" for name, known in offered.items())
            raise ValueError(f"engine {self.engine} does not do {method} with {self.scheme} here, but {can}")
        unknown = [key for key in ("rules", "kv_cache", "smoothquant") if getattr(self, key, None)]
        if unknown:
            raise ValueError(f"engine {self.engine} takes no {' and no '.join(unknown)} here")
        return self

    @property
    def schemes(self) -> tuple[SchemeName, ...]:
        """Schemes that modules can get, each once."""
        return tuple(dict.fromkeys((self.scheme, *(rule.scheme for rule in self.rules))))

    @property
    def measures_activations(self) -> bool:
        """Whether scales of activations, keys or values come from data."""
        return self.kv_cache is not None or any(SCHEMES[scheme].calibrated for scheme in self.schemes)

    @property
    def calibrated(self) -> bool:
        """Whether text is needed to quantize."""
        return self.measures_activations

    @property
    def needs_text(self) -> str:
        """Name of what comes from text, for messages."""
        return "the scale of activations"

    @property
    def needs_no_text(self) -> str:
        """Reason why no text is needed, for messages."""
        return "method rtn uses no data with this scheme"

    @property
    def family(self) -> str:
        """Number format that weights get: FP8, FP4, NF4, INT8 or INT4; `mixed` when there are rules."""
        return "mixed" if self.rules else SCHEMES[self.scheme].family.name

    @property
    def loss_class(self) -> str:
        """Main scheme, which tells what the loss is like."""
        return self.scheme


class Rtn(_Quantize):
    """Round to nearest. Uses no data, and is streamed from file to file, unless activations must be measured."""

    method: Literal["rtn"]


class _ByText(_Quantize):
    """The common part of the methods that look at what the model computes of text."""

    @property
    def calibrated(self) -> bool:
        """Whether text is needed to quantize."""
        return True

    @property
    def needs_text(self) -> str:
        """Name of what comes from text, for messages."""
        return f"method {getattr(self, 'method', '')}"


class Gptq(_ByText):
    """GPTQ (Frantar et al. 2210.17323), optionally after SmoothQuant (Xiao et al. 2211.10438): calibrated."""

    method: Literal["gptq"]

    smoothquant: float | None = Field(default=None, gt=0, lt=1)
    """Migration strength from activations to weights; no smoothing unless given."""

    dampening: float = Field(default=0.01, gt=0, lt=1)
    """Fraction of the Hessian's mean diagonal that is added to its diagonal."""

    experimental_cpu: bool = False
    """Whether engine auto-gptq may run without CUDA, by replacing two names inside it; `--experimental-cpu` sets it."""

    @model_validator(mode="after")
    def _experimental_where_cuda_is_needed(self) -> Self:
        needing = [engine.name for engine in ENGINES.values() if engine.without_cuda]
        if self.experimental_cpu and self.engine not in needing:
            which = ", ".join(needing)
            raise ValueError(f"experimental_cpu is for engine {which}; {self.engine} runs on a CPU as it is")
        return self


class Awq(_ByText):
    """AWQ (Lin et al. 2306.00978): input columns that matter are scaled up before rounding: calibrated."""

    method: Literal["awq"]

    @model_validator(mode="after")
    def _weight_only(self) -> Self:
        for scheme in self.schemes:
            if SCHEMES[scheme].weights.kind != "int" or SCHEMES[scheme].activations:
                raise ValueError(f"method awq is for integer weights and 16-bit activations, which {scheme} is not")
        return self


class Gguf(Frozen):
    """A GGUF file for llama.cpp: converted, quantized and evaluated by llama.cpp itself. Calibrated if `imatrix`."""

    method: Literal["gguf"]

    type: FileType
    """File type: name that llama.cpp gives a mixture of tensor types (docs/recipes.md)."""

    imatrix: bool = False
    """Whether rounding errors are weighed by an importance matrix: the mean square of each linear's input on the
    calibration text."""

    output: TensorType | None = None
    """Type of the output head, where the mixture's own does not suit."""

    embedding: TensorType | None = None
    """Type of the token embedding."""

    tensors: dict[str, TensorType] = Field(default={})
    """Types of other tensors: regular expression searched for in the GGUF's tensor names → type; the first decides."""

    @field_validator("tensors")
    @classmethod
    def _patterns_compile(cls, tensors: dict[str, TensorType]) -> dict[str, TensorType]:
        for pattern in tensors:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
            if pattern != pattern.lower() or "=" in pattern:
                raise ValueError(f"'{pattern}': llama.cpp reads patterns in lower case and without '='")
        return tensors

    @model_validator(mode="after")
    def _imatrix_where_needed(self) -> Self:
        asked = {"IQ2_S"} if self.type == "IQ2_M" else set()
        needing = sorted(asked | ({*self.tensors.values()} & {*NEEDS_IMATRIX}))
        if needing and not self.imatrix:
            what = f"{self.type} holds tensors of type" if asked else "tensors are given the type"
            raise ValueError(
                f"{what} {needing[0]}, which llama.cpp writes only with an importance matrix: imatrix: true"
            )
        return self

    @property
    def mixture(self) -> Mixture:
        """Settings that decide the tensors' types."""
        return Mixture(**self.model_dump(exclude={"method"}))

    @property
    def calibrated(self) -> bool:
        """Whether text is needed to quantize."""
        return self.imatrix

    @property
    def needs_text(self) -> str:
        """Name of what comes from text, for messages."""
        return "an importance matrix"

    @property
    def needs_no_text(self) -> str:
        """Reason why no text is needed, for messages."""
        return "without imatrix: true, no data is used"

    @property
    def family(self) -> str:
        """Kind of number format that weights get."""
        return "GGUF"

    @property
    def loss_class(self) -> str:
        """File type, which tells what the loss is like."""
        return self.type


Method = Rtn | Gptq | Awq
"""Method that quantizes the modules of a checkpoint."""
Quantize = Annotated[Method | Gguf, Field(discriminator="method")]
