"""The unquantized GGUF: what llama.cpp's own converter makes of a checkpoint, in F16, and the proof that it is the same
model. The baseline of every GGUF recipe, and what is quantized.

It is as large as the checkpoint and lies in the cache while a run lasts; `discard` removes it. The converter runs as a
process of its own with llama.cpp's own `gguf` package, which must not be imported beside the one on the package index.
"""

import itertools
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.calibration.held_out import held_out
from pipelines.calibration.tokens import CalibrationTokens
from pipelines.checkpoint.finite import check_finite
from pipelines.checkpoint.headers import INDEX, Checkpoint
from pipelines.checkpoint.limits import check_tokens, language_config
from pipelines.checkpoint.tokenizer import load_tokenizer
from pipelines.core.cache import Result, cache_dir, digest, file_digest, keep
from pipelines.core.errors import QuantgateError, bad_input
from pipelines.core.processes import run_logged
from pipelines.core.records import parse_json
from pipelines.environments import llama_build
from pipelines.runtimes.amounts import DIVERGENCE_CHUNKS, DIVERGENCE_CONTEXT
from pipelines.runtimes.distance import Distance
from pipelines.runtimes.llama_cpp import LlamaProcess, measure_distance, write_logits
from pipelines.runtimes.loading import score_tokens
from pipelines.runtimes.probe import PROMPT

if TYPE_CHECKING:
    from torch import nn

TEXTS = (
    PROMPT,
    "In 1913 Niels Bohr explained the lines of hydrogen: 656.3, 486.1, 434.0 and 410.2 nm.  Two spaces,\ttabs,\nlines.",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)  # of at least one\n\n\n",
    "Zürich, naïve façade, Ελλάδα, Москва, 東京, 서울, עברית, हिन्दी — “quotes”, 100 % ± 5 €, 🙂👩‍🔬",
    " leading and trailing spaces   ",
    "It wasn't theirs; they'll say we've 1234567890 reasons, and I'd agree.",
)
"""Texts that both tokenizers must read alike, and both runtimes must find equally likely."""
TOLERANCE = 1e-3
"""Largest relative difference of the two perplexities: they are equal to three digits."""

F16, LOGITS = "f16.gguf", "logits.bin"
"""Names of the two large files, which `discard` removes."""


class Converted(Result):
    """An F16 GGUF, and how it compares with its checkpoint in float32."""

    perplexity_source: float
    perplexity_gguf: float
    tokens: int
    """Number of tokens that the perplexities are of."""

    @property
    def file(self) -> Path:
        """Return the GGUF."""
        return self.folder / F16


class BaseLogits(Result):
    """The unquantized GGUF's log-probabilities on held-out text."""

    @property
    def file(self) -> Path:
        """Return the log-probabilities, as llama-perplexity writes them."""
        return self.folder / LOGITS

    @property
    def text(self) -> Path:
        """Return the text that they are of."""
        return self.folder / "text.txt"


class Divergence(Result):
    """The distance of an artifact from the unquantized GGUF."""

    distance: Distance


def convert(checkpoint: Checkpoint) -> Converted:
    """Return the F16 GGUF of `checkpoint`, made with llama.cpp's converter and held against the checkpoint.

    Raises:
        BadInput: a tensor of the checkpoint holds NaN or infinities, or its tokenizer has tokens that it does not know.
        QuantgateError: the converter does not take the checkpoint, its tokens differ from the checkpoint's tokenizer's,
            or the file computes something else than the checkpoint: a broken conversion.
    """

    def make(folder: Path) -> dict[str, Any]:
        file = folder / F16
        try:
            return make_file(file)
        except QuantgateError:
            file.unlink(missing_ok=True)  # as large as the checkpoint; its log stays
            raise

    def make_file(file: Path) -> dict[str, Any]:
        check_finite(checkpoint, checkpoint.tensors)
        run_converter(checkpoint, file)
        with LlamaProcess(file) as llama:
            texts = _compare_tokens(checkpoint, llama)
            ours = [score for text in texts for score, _ in llama.score([([text[0]], [text[1:]])])[0][0]]
        theirs = _source_scores(checkpoint, texts)
        before, after = (math.exp(-statistics.fmean(scores)) for scores in (theirs, ours))
        if not abs(after / before - 1) <= TOLERANCE:
            what = f"the GGUF's perplexity on a fixed text is {after:.4f}, the checkpoint's {before:.4f}"
            raise QuantgateError(f"{checkpoint.label}: broken conversion: {what}")
        return {"perplexity_source": before, "perplexity_gguf": after, "tokens": len(ours)}

    inputs = {"source": checkpoint.digest, "llama.cpp": llama_build.version(), "metadata": _metadata(checkpoint)}
    return keep("convert", inputs, Converted, make, lambda found: found.file.is_file())


def discard(checkpoint: Checkpoint) -> None:
    """Remove the F16 GGUFs of `checkpoint` and their logits from the cache; what was measured on them stays."""
    for stage, name in (("convert", F16), ("logits", LOGITS)):
        for record in (cache_dir() / "stages" / stage).glob("*/result.json"):
            if json.loads(record.read_text(encoding="utf-8"))["inputs"]["source"] == checkpoint.digest:
                (record.parent / name).unlink(missing_ok=True)


def measure_divergence(checkpoint: Checkpoint, file: Path, tokens: CalibrationTokens | None) -> Divergence:
    """Return the distance of the GGUF `file` from that of `checkpoint` on text that it was not calibrated on."""
    inputs = {"source": checkpoint.digest, "file": file_digest(file), "llama.cpp": llama_build.version()}
    inputs["calibration"] = tokens.digest if tokens else ""

    def make(folder: Path) -> dict[str, Any]:
        base = _base_logits(checkpoint, tokens)
        arguments = (file, base.text, DIVERGENCE_CHUNKS, DIVERGENCE_CONTEXT, base.file, folder / "perplexity.log")
        return {"distance": measure_distance(*arguments)}

    return keep("divergence", inputs, Divergence, make)


def _base_logits(checkpoint: Checkpoint, tokens: CalibrationTokens | None) -> BaseLogits:
    """Return the logits of the unquantized GGUF on text that is held out of the calibration set."""
    text = held_out(tokens, 8 * DIVERGENCE_CHUNKS * DIVERGENCE_CONTEXT)

    def make(folder: Path) -> dict[str, Any]:
        (folder / "text.txt").write_text(text, encoding="utf-8")
        arguments = (DIVERGENCE_CHUNKS, DIVERGENCE_CONTEXT, folder / LOGITS, folder / "perplexity.log")
        write_logits(convert(checkpoint).file, folder / "text.txt", *arguments)
        return {}

    inputs = {"source": checkpoint.digest, "text": digest(text), "llama.cpp": llama_build.version()}
    return keep("logits", inputs, BaseLogits, make, lambda found: found.file.is_file())


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the file says of where it comes from, by llama.cpp's names."""
    metadata: dict[str, Any] = {
        "general.name": checkpoint.label.rpartition("/")[2],
        "general.quantized_by": "quantgate",
    }
    if checkpoint.licence:
        metadata["general.license"] = checkpoint.licence
    if checkpoint.hub_id:
        owner, _, name = checkpoint.hub_id.rpartition("/")
        base = {"name": name, "organization": owner, "repo_url": f"https://huggingface.co/{checkpoint.hub_id}"}
        metadata["general.base_models"] = [base]
    return metadata


def run_converter(checkpoint: Checkpoint, file: Path) -> None:
    """Let llama.cpp's converter write `file`, with its log and the metadata it was given beside it.

    Raises:
        QuantgateError: it does not take the checkpoint.
    """
    metadata, log = file.with_name("metadata.json"), file.with_name("convert.log")
    metadata.write_text(json.dumps(_metadata(checkpoint)), encoding="utf-8")
    script = llama_build.source() / "convert_hf_to_gguf.py"
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        source = without_code(checkpoint, Path(scratch))
        command = [sys.executable, str(script), str(source), "--outfile", str(file), "--outtype", "f16"]
        try:
            run_logged([*command, "--metadata", str(metadata)], log, variables={"HF_HUB_OFFLINE": "1"})
        except QuantgateError as error:
            raise QuantgateError(f"llama.cpp's converter does not take {checkpoint.label}: {error}") from None


def without_code(checkpoint: Checkpoint, scratch: Path) -> Path:
    """Return a folder in `scratch` that holds `checkpoint`, but neither code nor what points to any.

    llama.cpp's converter lets the tokenizers of some architectures, which a config may choose freely, run code.

    Raises:
        BadInput: a config is no JSON.
    """
    folder = scratch / checkpoint.folder.name  # by which the converter names what nobody named
    folder.mkdir()
    names = {*checkpoint.weight_files, *checkpoint.companions, "config.json", INDEX, "README.md"}
    for name in (name for name in names if (checkpoint.folder / name).is_file()):
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith("config.json"):
            try:
                config = parse_json((checkpoint.folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise bad_input(checkpoint.folder / name, f"cannot be read as JSON: {error}", "copy it again") from None
            if isinstance(config, dict):
                config.pop("auto_map", None)
            (folder / name).write_text(json.dumps(config), encoding="utf-8")
        else:
            (folder / name).symlink_to(checkpoint.folder / name)
    return folder


def _compare_tokens(checkpoint: Checkpoint, llama: LlamaProcess) -> list[list[int]]:
    """Return the token ids of each of `TEXTS`, after the token that llama.cpp lets texts begin with.

    Raises:
        BadInput: the tokenizer has tokens that the checkpoint does not know.
        QuantgateError: the two tokenizers do not agree.
    """
    tokenizer = load_tokenizer(checkpoint)
    theirs = [list(tokenizer(text)["input_ids"]) for text in TEXTS]
    check_tokens(checkpoint.folder, tokenizer, itertools.chain.from_iterable(theirs), language_config(checkpoint))
    ours = llama.tokenize(TEXTS)
    for text, a, b in zip(TEXTS, theirs, ours, strict=True):
        if a != b:
            where = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            what = f"token {where} of {text[:40]!r} is {b[where : where + 3]}, the checkpoint's tokenizer says"
            raise QuantgateError(f"{checkpoint.label}: broken conversion: {what} {a[where : where + 3]}")
    return [tokens if tokens[0] == llama.first else [llama.first, *tokens] for tokens in ours]


def _source_scores(checkpoint: Checkpoint, texts: Sequence[list[int]]) -> list[float]:
    """Return the log-probability of each token but the first of each text, computed by transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, dtype="auto", trust_remote_code=False, use_safetensors=True
    ).eval()
    scores: list[float] = []
    with torch.inference_mode(), in_float32(model):
        for text in texts:
            scores += score_tokens(model, torch.tensor([text]))
    return scores


@contextmanager
def in_float32(model: "nn.Module") -> Iterator[None]:
    """Compute in float32, one module's own parameters at a time, so that no second copy of the model is needed."""
    import torch

    originals: dict[nn.Module, list[torch.Tensor]] = {}

    def widen(module: "nn.Module", _: Any) -> None:
        own = list(module.parameters(recurse=False))
        originals[module] = [parameter.data for parameter in own]
        for parameter in own:
            parameter.data = parameter.data.float()

    def restore(module: "nn.Module", *_: Any) -> None:
        for parameter, original in zip(module.parameters(recurse=False), originals.pop(module), strict=True):
            parameter.data = original

    holders = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    hooks = [module.register_forward_pre_hook(widen) for module in holders]
    hooks += [module.register_forward_hook(restore) for module in holders]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
