"""The schema of a recipe: how a checkpoint becomes an artifact and what is asked of it, never where."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.core.errors import bad_input
from pipelines.core.strict_yaml import Frozen
from pipelines.environments.engines import ENGINES, Engine
from pipelines.formats.packings import HOLDS, Packing
from pipelines.formats.schemes import SchemeName
from pipelines.recipe.library import Name
from pipelines.recipe.methods import Gguf, Method, Quantize

Export = Literal["compressed-tensors", "autogptq", "autoawq"]
EXPORTS: dict[Export, Packing] = {"compressed-tensors": "compressed-tensors", "autogptq": "gptq", "autoawq": "awq"}


class Calibrate(Frozen):
    """The text that a calibrated method sees."""

    set: str
    """Calibration set, by its name (`quantgate list sets`), or the file of one."""
    samples: int = Field(default=512, gt=0, le=65536)
    """Number of samples."""
    seq_len: int = Field(default=2048, gt=7, le=131072)
    """Tokens of each sample; fewer where the model has fewer positions."""
    seed: int = 42
    """Seed of the choice of texts, and of their order."""
    pack: bool = True
    """Whether texts are joined, separated by the end-of-sequence token if there is one, so that every sample has
    `seq_len` tokens; otherwise each text is one sample, cut at `seq_len`."""


LEAST_RETENTION = 0.5
"""Share of the baseline that a target lies above."""


def check_retention(share: float, where: str) -> None:
    """Raise `BadInput`, blamed on `where`, for a share of the baseline that nothing or everything would keep."""
    if not LEAST_RETENTION < share < 1:
        raise bad_input(where, f"is no share between {LEAST_RETENTION:g} and 1", "give 0.99")


class Gate(Frozen):
    """The share of its baseline that the artifact must keep, and the suite that measures it."""

    suite: str = "core"
    """Suite, by its name (`quantgate list suites`), or the file of one."""
    retention: float = Field(default=0.99, gt=LEAST_RETENTION, lt=1)
    """Share of the baseline's score above chance that the artifact must keep."""


class Recipe(Frozen):
    """The way from a checkpoint to an artifact, and what is asked of the artifact."""

    version: Literal[1]
    """Version of this format."""
    name: Name
    """Name of the recipe and of the artifact's folder."""
    summary: str
    """Purpose, the hardware on which it pays, and the retention to expect."""
    quantize: Quantize
    export: Export | None = None
    """Layout in which the artifact stores INT4 weights, the engine's own way unless given: the same numbers in another
    order."""
    calibrate: Calibrate | None = None
    gate: Gate = Gate()

    @model_validator(mode="after")
    def _calibration_fits_method(self) -> Self:
        if self.calibrated and self.calibrate is None:
            example = "{set: passages, samples: 128, seq_len: 512}"
            what = f"{self.quantize.needs_text} needs calibration"
            raise ValueError(f"{what}: add a 'calibrate' block, for example {example}")
        if not self.calibrated and self.calibrate is not None:
            what = self.quantize.needs_no_text
            raise ValueError(f"{what}: remove the 'calibrate' block, or --set calibrate=null")
        return self

    @model_validator(mode="after")
    def _export_holds_schemes(self) -> Self:
        if self.export is None:
            return self
        if self.makes_gguf or self.engine_packing not in EXPORTS.values():
            what = "a GGUF" if self.makes_gguf else f"what engine {self.engine} makes"
            raise ValueError(f"{what} has one form only: remove 'export', or --set export=null")
        holds = HOLDS.get(self.packing, self.schemes)
        if strangers := [scheme for scheme in self.schemes if scheme not in holds]:
            what = f"export {self.export} holds {', '.join(holds)}, not {strangers[0]}"
            raise ValueError(f"{what}: remove 'export', or --set export=null")
        return self

    @property
    def makes_gguf(self) -> bool:
        """Whether the artifact is a GGUF, and no checkpoint."""
        return isinstance(self.quantize, Gguf)

    @property
    def method(self) -> Method:
        """Method that quantizes the modules of a checkpoint. It is asked only of a recipe that makes no GGUF."""
        assert not isinstance(self.quantize, Gguf)
        return self.quantize

    @property
    def engine(self) -> Engine | Literal["llama.cpp"]:
        """Name of the program that quantizes."""
        return "llama.cpp" if isinstance(self.quantize, Gguf) else self.quantize.engine

    @property
    def schemes(self) -> tuple[SchemeName, ...]:
        """Schemes that a module can get; a GGUF has types of its own instead."""
        return () if isinstance(self.quantize, Gguf) else self.quantize.schemes

    @property
    def kv_cache(self) -> Literal["FP8"] | None:
        """Format of cached keys and values, where the recipe chooses one."""
        return None if isinstance(self.quantize, Gguf) else self.quantize.kv_cache

    @property
    def packing(self) -> Packing:
        """Layout in which the artifact of modules stores its weights."""
        return EXPORTS[self.export] if self.export else self.engine_packing

    @property
    def engine_packing(self) -> Packing:
        """Layout in which the engine of modules stores its weights."""
        if self.method.engine == "quantgate":
            return "compressed-tensors"
        return ENGINES[self.method.engine].packings[self.method.method]

    @property
    def repacked(self) -> bool:
        """Whether the artifact stores its weights otherwise than the engine does."""
        return self.export is not None and self.packing != self.engine_packing

    @property
    def calibrated(self) -> bool:
        """Whether text is needed to quantize."""
        return self.quantize.calibrated

    @property
    def family(self) -> str:
        """Number format that weights get: FP8, FP4, NF4, INT8, INT4 or GGUF; `mixed` when there are rules."""
        return self.quantize.family

    @property
    def loss_class(self) -> str:
        """Class by which losses are alike: the main scheme, or the file type of a GGUF."""
        return self.quantize.loss_class
