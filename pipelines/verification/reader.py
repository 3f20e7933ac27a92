"""An artifact as its reader loads it: the program that the card names, in a process of its own without code of ours.

What is evaluated is loaded by `pipelines.runtimes.loading`, which may read what others cannot. So the reader's logits
are held against those: as it computes by itself, which has to be near; and with the same numbers,
rounding no inputs and in the same type, which has to be equal but for the order of sums.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoint.dtypes import own_dtype
from pipelines.checkpoint.headers import FLOAT, read_checkpoint
from pipelines.checkpoint.limits import positions
from pipelines.checkpoint.names import ONE_BY_ONE
from pipelines.core.device import ComputeDtype
from pipelines.core.errors import QuantgateError
from pipelines.core.processes import WorkerProcess, clean_variables
from pipelines.core.strict_yaml import Frozen
from pipelines.environments import isolated
from pipelines.environments.isolated import serve
from pipelines.environments.workers.transformers_reader import LOGITS, compute
from pipelines.formats.schemes import SCHEMES
from pipelines.planning.readers import Home, Program, home, unknown
from pipelines.runtimes.loading import load_for_inference, unrounded

if TYPE_CHECKING:
    import torch

    from pipelines.quantization.artifact import CheckpointArtifact
    from pipelines.recipe.recipe import Recipe

TOKENS = 96
"""Tokens of the text that both compute on, if the model has as many positions."""
NAMED = 3
"""Number of modules or tensors that an error names."""
NEAR: dict[int | None, float] = {None: 0.1, 8: 0.5, 4: 0.8}
"""Bits of rounded activations → largest distance of the reader's own logits from the evaluated ones, relative to their
size, in the median over tokens. Seen on small models of random weights, dense and mixtures: 0.006 to 0.012 without
rounding (what bfloat16 loses against float32), 0.015 to 0.1 with 8 bits and 0.1 to 0.34 with 4, where one sum's last
bit moves a number to the next value, and transformers rounds no inputs of experts. What it misread was 0.17 (experts of
one layer of three at random) to 1.4 (experts without the scale of their tensor)."""
EQUAL: dict[ComputeDtype, float] = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Type that both compute in → largest distance of the logits where both compute with the same numbers. Seen: below
1e-7 in float32; 0.012 and 0.001 where one of them computes in bfloat16 or float16."""
NARROWED = 0.02
"""Largest distance of the logits where both compute with the same numbers but kept tensors are rounded while they are
loaded: config.json says another type than the source's, or the source has several. Seen: 0.003 to 0.006."""
UNCONVERTED = re.compile(r"^(\S.*?) +\| (?:CONVERSION|MISMATCH) ", re.MULTILINE)
"""Pattern of a line of transformers' report on tensors that it could not make a model of."""


class Reader(Frozen):
    """The program that loads an artifact, and how far what it computes is from what was evaluated."""

    program: Program
    version: str | None = None
    dtype: ComputeDtype | None = None
    """Type that the program computes in by itself."""
    median_error: float | None = None
    """Median error of its logits from those evaluated, relative to their size, over the tokens of a fixed text."""
    largest_error: float | None = None
    """Largest error of its logits over the same tokens."""
    weights_error: float | None = None
    """Median error of its logits where both compute in the type of the evaluation and round no inputs."""
    not_loaded: str = ""
    """Reason why the artifact was not loaded here; empty if it was."""


@dataclass(frozen=True)
class Evaluated:
    """The output of the model that is evaluated on a text, for comparison."""

    text: str
    tokens: list[int]
    """Token ids of all of the text by the source's tokenizer."""
    ids: list[int]
    """Token ids of the text's beginning, which the model reads."""
    rounded: "torch.Tensor"
    """Logits (tokens, vocabulary), as they are evaluated."""
    plain: "torch.Tensor"
    """Logits (tokens, vocabulary) without rounded inputs, and with weights in the type that transformers dequantizes
    them to."""


def evaluated(model: Any, artifact: "CheckpointArtifact", text: str, tokens: list[int]) -> Evaluated:
    """Return what `model` computes, which is `artifact` as `load_for_inference` loads it. It is to be thrown away
    then: its weights have lost bits."""
    ids = tokens[: min(TOKENS, positions(model.config.get_text_config(decoder=True)) or TOKENS)]
    rounded = compute(model, ids)[LOGITS]
    _narrow(model, artifact)
    with unrounded(model):
        return Evaluated(text, tokens, ids, rounded, compute(model, ids)[LOGITS])


def _narrow(model: Any, artifact: "CheckpointArtifact") -> None:
    """Round the quantized weights of `model` to the type that transformers has them in."""
    import torch

    own = getattr(torch, own_dtype(read_checkpoint(artifact.checkpoint)))
    for name, module in model.named_modules():
        scheme: Any = getattr(module, "quantization_scheme", None)
        if scheme and isinstance(module, torch.nn.Linear):
            merged = ONE_BY_ONE.match(f"{name}.") and (scheme.weights.type, scheme.weights.num_bits) == ("float", 8)
            module.weight.data = module.weight.data.to(torch.bfloat16 if merged else own).to(module.weight.dtype)


def identity(artifact: "CheckpointArtifact") -> Any:
    """Return the facts that decide how `artifact` is read: the program, and the environment that it has here."""
    found = home(artifact.recipe)
    other = str(_python(found)) if found.environment else ""
    return [found.model_dump(), other]


def is_here(recipe: "Recipe") -> bool:
    """Tell whether `read` loads the artifacts of `recipe`, which makes no GGUF, on this machine."""
    return _python(home(recipe)) is not None


def _python(found: Home) -> Path | None:
    """Return the Python that has the program, if there is one here."""
    if found.program != "transformers":
        return None
    return isolated.find(found.environment) if found.environment else Path(sys.executable)


class Reading(Frozen):
    """The findings of the reader of an artifact: how far its logits are, and what is wrong."""

    reader: Reader
    problems: tuple[str, ...] = ()


def read(artifact: "CheckpointArtifact", ours: Evaluated, device: str, dtype: ComputeDtype, scratch: Path) -> Reading:
    """Load `artifact` as its reader does, on `device`, and compare with `ours`, which computed there in `dtype`; files
    go into `scratch` for a while."""
    found = home(artifact.recipe)
    python = _python(found)
    if python is None:
        return Reading(reader=Reader(program=found.program, not_loaded=found.absent))
    _leave_gpu(device)
    log = scratch / "reader.log"
    with WorkerProcess("transformers", command(python), {**clean_variables(), "HF_HUB_OFFLINE": "1"}, log) as process:
        comparison = _Comparison(artifact, ours, device, dtype, scratch, process)
        wrong: tuple[str, ...] = ()
        try:
            said = comparison.load()
            wrong = tuple(loading_problems(said))
            wrong += comparison.other_tokens()
            compared = comparison.compare(said)
        except QuantgateError as error:  # what it raised, with its traceback below
            about = [*dict.fromkeys(UNCONVERTED.findall(log.read_text(encoding="utf-8", errors="replace")))]
            raised = str(error).splitlines()[0] + (f" ({_listed(about)})" if about else "")
            return Reading(reader=Reader(program=found.program), problems=(*wrong, raised))
        return Reading(reader=compared.reader, problems=(*wrong, *compared.problems))


def _leave_gpu(device: str) -> None:
    """Hand back what PyTorch keeps of a GPU's memory for later: another process needs it now."""
    import torch

    if device != "cpu":
        torch.cuda.empty_cache()


def command(python: Path) -> list[str]:
    """Return the command that starts the reader in a process that finds nothing but the packages of `python`."""
    return [str(python), "-I", *serve("transformers_reader")]


@dataclass(frozen=True)
class _Comparison:
    """One artifact in one process."""

    artifact: "CheckpointArtifact"
    ours: Evaluated
    device: str
    dtype: ComputeDtype
    scratch: Path
    process: WorkerProcess

    def load(self) -> dict[str, Any]:
        """Let the reader load the artifact; return what it says of its tensors, and its type."""
        said: dict[str, Any] = self.process.ask(
            "load", folder=self._folder, family=self.artifact.plan.family, device=self.device
        )
        return said

    def other_tokens(self) -> tuple[str, ...]:
        """Return a sentence if the artifact's tokenizer makes other tokens of a text than the source's; else none."""
        if self.process.ask("tokens", folder=self._folder, text=self.ours.text) == self.ours.tokens:
            return ()
        return ("its tokenizer makes other tokens of a text than the source's",)

    @property
    def _folder(self) -> str:
        return str(self.artifact.checkpoint.absolute())

    def compare(self, said: Mapping[str, Any]) -> Reading:
        """Return how far the reader's logits are from `ours`; `said` is what it told when it loaded the artifact."""
        own = self._errors(self.ours.rounded)
        plain = self._plain_errors() if self.artifact.recipe.packing == "compressed-tensors" else None
        reader = Reader(
            program="transformers",
            version=said["version"],
            dtype=said["dtype"],
            median_error=float(own.median()),
            largest_error=float(own.max()),
            weights_error=None if plain is None else float(plain.median()),
        )
        near = own.median() <= NEAR[_rounded_bits(self.artifact)]
        equal = plain is None or plain.median() <= self._tolerance
        return Reading(reader=reader, problems=() if near and equal else (self._complaint(reader),))

    def _plain_errors(self) -> "torch.Tensor":
        self.process.ask("widen", dtype=self.dtype)
        return self._errors(self.ours.plain)

    @property
    def _tolerance(self) -> float:
        """Largest distance, relative to their size, of logits that both compute of the same numbers."""
        stored = own_dtype(read_checkpoint(self.artifact.checkpoint))
        kept = {tensor.dtype for tensor in self.artifact.source.tensors} & {*FLOAT}
        narrows = stored != own_dtype(self.artifact.source) or len(kept) > 1
        return max(EQUAL[self.dtype], NARROWED if narrows else 0.0)

    def _errors(self, ours: "torch.Tensor") -> "torch.Tensor":
        """Return each token's relative error of the reader's logits as it computes now."""
        theirs = self._outputs(modules=False)[LOGITS]
        errors: torch.Tensor = (theirs - ours).norm(dim=-1) / ours.norm(dim=-1)
        return errors

    def _outputs(self, modules: bool) -> "dict[str, torch.Tensor]":
        """Return what the reader computes, in its order."""
        from safetensors.torch import load_file

        file = self.scratch / "read.safetensors"
        names = self.process.ask("compute", ids=self.ours.ids, to=str(file), outputs=modules)
        found = load_file(file)
        file.unlink()
        return {name: found[name] for name in names}

    def _complaint(self, reader: Reader) -> str:
        assert reader.median_error is not None
        assert reader.largest_error is not None
        far = f"{reader.median_error:.1%} of their size in the median over tokens, {reader.largest_error:.1%} at most"
        if reader.weights_error is not None:
            far += f", {reader.weights_error:.2%} where both round no inputs and compute in {self.dtype}"
        what = f"transformers {reader.version} computes other logits of it than those evaluated ({far})"
        differing = self._differing()
        where = f"the first modules that give something else: {', '.join(differing[:NAMED])}"
        return f"{what}; {where}" if differing else what

    def _differing(self) -> list[str]:
        """Return the modules whose outputs are not those of the evaluated model, in the order in which they finish."""
        model = load_for_inference(self.artifact.checkpoint, self.device, self.dtype)
        _narrow(model, self.artifact)
        with unrounded(model):
            ours = compute(model, self.ours.ids, outputs=True)
        theirs = self._outputs(modules=True)
        same = [name for name in theirs if name in ours and ours[name].shape == theirs[name].shape and name != LOGITS]
        far = {name: (theirs[name] - ours[name]).norm() / ours[name].norm() for name in same}
        return [name for name, error in far.items() if not error <= self._tolerance]


def _rounded_bits(artifact: "CheckpointArtifact") -> int | None:
    """Return how few bits readers round activations, keys or values to; None if they round nothing."""
    rounded = [inputs.bits for scheme, _ in artifact.plan.formats if (inputs := SCHEMES[scheme].activations)]
    return min(rounded + ([8] if artifact.recipe.kv_cache else []), default=None)


def loading_problems(said: Mapping[str, Any]) -> list[str]:
    """Return what transformers found missing, too much or of another shape."""
    found = {
        "finds no": said["missing_keys"],
        "knows nothing of": unknown(said["unexpected_keys"]),
        "wants another shape of": said["mismatched_keys"],
    }
    return [f"transformers {said['version']} {what} {_listed(keys)}" for what, keys in found.items() if keys]


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - NAMED} more" if keys[NAMED:] else ""
    return ", ".join(keys[:NAMED]) + more
