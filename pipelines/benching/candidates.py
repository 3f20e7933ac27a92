"""The models that are served: artifacts, what they were made of, and a draft model, found and checked before anything
starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.benching.server import Served, ServerRuntime
from pipelines.benching.timings import Contender
from pipelines.checkpoint.gguf_file import find_gguf, read_gguf
from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.checkpoint.load import load_model
from pipelines.core.cache import digest, file_digest
from pipelines.core.errors import BadInput, Problem, Problems, bad_input, refuse
from pipelines.core.records import parse_json
from pipelines.core.strict_yaml import Frozen
from pipelines.formats.schemes import SchemeName
from pipelines.planning.plan import CheckpointPlan
from pipelines.quantization.stage import read_artifact
from pipelines.recipe.recipe import Recipe
from pipelines.runtimes.vllm import runs_on_cpu
from pipelines.serving.drafts import vocabulary

ARTIFACT = "artifact"
"""Name of the folder that the quantize stage leaves beside its result."""
PUBLISHED = "quantgate.json"
"""Name of the file by which a folder is a published artifact."""


class Origin(Frozen):
    """What an artifact's record says of where it comes from."""

    recipe: Recipe
    label: str
    """Source model's name."""
    digest: str
    """Source checkpoint's digest."""
    place: str
    """Where the source is to be found: a folder, a hub id with its revision, or a name that `load_model` knows."""
    files: dict[str, str]
    """SHA-256 of each file of the artifact."""
    formats: tuple[tuple[SchemeName, int | None], ...] = ()


class Candidate(Frozen):
    """A model that can be served."""

    name: str
    digest: str
    path: Path | None = None
    """Checkpoint folder, or GGUF; None for a GGUF that is made of `source` when it is served."""
    source: Checkpoint | None = None
    tokenizer: Path | None
    """Folder with its tokenizer; None where there is none beside it."""
    origin: Origin | None = None
    artifact: str = ""
    """Digest by which records know the artifact; empty where its files are not those of its record."""

    @property
    def is_gguf(self) -> bool:
        """Whether llama.cpp loads it."""
        return self.path is None or self.path.suffix == ".gguf"

    @property
    def unquantized(self) -> Checkpoint:
        """Checkpoint of a candidate without a path."""
        assert self.source
        return self.source

    def served(self, path: Path, draft: Path | None = None) -> Served:
        """Return what a server is told: the model in `path`, perhaps with a draft model."""
        fp8 = self.origin and self.origin.recipe.kv_cache
        return Served(name=self.name, path=path, draft=draft, kv_cache="fp8" if fp8 else None)


class Lineup(Frozen):
    """Everything that takes part, in the order in which it is served first."""

    candidates: tuple[Candidate, ...]
    """Baseline, if there is one, and artifacts."""
    draft: Candidate | None
    has_baseline: bool

    @property
    def tokenizer(self) -> Path:
        """Folder with the tokenizer that prompts are made with: one for all, so that all get the same prompts."""
        return next(one.tokenizer for one in self.candidates if one.tokenizer)

    def contenders(self) -> tuple[tuple[Contender, Candidate], ...]:
        """Return each contender with its candidate: every candidate, and every artifact again with the draft model."""
        baseline = (self.candidates[0].name,) if self.has_baseline else ()
        found: list[tuple[Contender, Candidate]] = []
        for number, one in enumerate(self.candidates):
            over = baseline if number or not baseline else ()
            found.append((Contender(name=one.name, digest=one.digest, artifact=one.artifact, over=over), one))
            if self.draft and (number or not baseline):
                over = (one.name, *baseline)
                name = f"{one.name} with draft"
                found.append((Contender(name=name, digest=one.digest, draft=self.draft.digest, over=over), one))
        return tuple(found)


def find_lineup(
    artifacts: Sequence[str | Path],
    runtime: ServerRuntime,
    device: str = "cpu",
    baseline: bool = False,
    model: str | None = None,
    draft: str | None = None,
) -> Lineup:
    """Return the models that take part, checked: `artifacts`, their `baseline`, which is `model` or what the first
    artifact's record names, and a `draft` model.

    Raises:
        BadInput: with every problem: something is not there, the runtime does not load it, artifacts were made of
            another model than the baseline, or the draft model has another vocabulary.
    """
    problems = Problems()
    found = [one for artifact in artifacts if (one := problems.of(_artifact, str(artifact), runtime, device))]
    helper = problems.of(_draft, draft, runtime, device) if draft else None
    refuse(problems.found)
    before = _baseline(found, runtime, model) if baseline else None
    if helper:
        refuse(problem for one in found for problem in _other_words(one, helper, str(draft)))
    candidates = _named_apart((*([before] if before else ()), *found))
    if not any(one.tokenizer for one in candidates):
        candidates = (_with_tokenizer(candidates[0], model), *candidates[1:])
    return Lineup(candidates=candidates, draft=helper, has_baseline=before is not None)


def _artifact(place: str, runtime: ServerRuntime, device: str) -> Candidate:
    one = find_candidate(place)
    _check_loads(place, one, runtime, device)
    return one


def _draft(place: str, runtime: ServerRuntime, device: str) -> Candidate:
    try:
        return _artifact(place, runtime, device)
    except BadInput as error:
        raise BadInput(Problem(f"--draft {one.where}", one.what, one.remedy) for one in error.problems) from None


def find_candidate(place: str) -> Candidate:
    """Return the model in `place`: the folder of an artifact, published or not, a checkpoint, or a GGUF file.

    Raises:
        BadInput: there is none, or its record cannot be read.
    """
    if file := find_gguf(place):
        read_gguf(file)
        origin = find_origin(file.parent)
        tokenizer = file.parent if (file.parent / "tokenizer.json").is_file() else None
        return Candidate(
            name=origin.recipe.name if origin else file.stem,
            digest=file_digest(file),
            path=file.absolute(),
            tokenizer=tokenizer,
            origin=origin,
            artifact=_recorded(origin, {file.name: file_digest(file)}),
        )
    checkpoint = load_model(place)
    origin = find_origin(checkpoint.folder)
    return Candidate(
        name=origin.recipe.name if origin else checkpoint.label,
        digest=checkpoint.digest,
        path=checkpoint.folder.absolute(),
        tokenizer=checkpoint.folder.absolute(),
        origin=origin,
        artifact=_recorded(origin, checkpoint.digests),
    )


def _recorded(origin: Origin | None, found: Mapping[str, str]) -> str:
    """Return the digest of the artifact that `origin` records, where the files `found` are of it, else nothing."""
    return digest(origin.files) if origin and found.items() <= origin.files.items() else ""


def find_origin(folder: Path) -> Origin | None:
    """Return what the record of the artifact in `folder` says of its source; None where there is no record.

    Raises:
        BadInput: the record is not one of this version of quantgate.
    """
    if (folder / PUBLISHED).is_file():
        return _published(folder / PUBLISHED)
    if folder.name != ARTIFACT or not (folder.parent / "result.json").is_file():
        return None
    artifact = read_artifact(folder)
    source = artifact.source
    formats = artifact.plan.formats if isinstance(artifact.plan, CheckpointPlan) else ()
    place = str(source.folder)
    return Origin(
        recipe=artifact.recipe,
        label=source.label,
        digest=source.digest,
        place=place,
        files=artifact.files,
        formats=tuple(formats),
    )


def _published(file: Path) -> Origin:
    try:
        record: dict[str, Any] = parse_json(file.read_text(encoding="utf-8"))
        model, modules = record["model"], record["modules"]
        revision = f"@{model['revision']}" if model["revision"] else ""
        return Origin(
            recipe=Recipe.model_validate(record["recipe"]),
            label=model["label"],
            digest=model["digest"],
            place=f"{model['hub_id']}{revision}" if model["revision"] else model["label"],
            files=record["files"],
            formats=tuple((one["scheme"], one["group_size"]) for one in modules if one["scheme"]),
        )
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        what = "is not the record of a run by this version of quantgate"
        raise bad_input(file, what, "run it again, or read it with the version that wrote it") from None


def _check_loads(place: str, one: Candidate, runtime: ServerRuntime, device: str) -> None:
    """Refuse a model that the server of `runtime` is known not to load."""
    if runtime == "llama.cpp" and not one.is_gguf:
        raise bad_input(place, "is no GGUF, and llama.cpp loads nothing else", "add --runtime vllm")
    if runtime == "vllm" and one.is_gguf:
        raise bad_input(place, "is a GGUF, which is for llama.cpp", "add --runtime llama.cpp")
    if runtime == "vllm" and device == "cpu" and one.origin:
        reason = runs_on_cpu(one.origin.formats, one.origin.recipe.kv_cache, one.origin.recipe.packing)
        if reason:
            raise bad_input(place, reason, "serve it on a GPU")


def _baseline(artifacts: Sequence[Candidate], runtime: ServerRuntime, model: str | None) -> Candidate:
    """Return what all `artifacts` were made of, as the runtime serves it."""
    if model and (file := find_gguf(model)):
        return find_candidate(str(file))
    checkpoint = load_model(model) if model else _source(artifacts[0])
    for one in artifacts:
        if one.origin and one.origin.digest != checkpoint.digest:
            what = f"was made of another model than the baseline {checkpoint.label}: {one.origin.label}"
            raise bad_input(one.path, what, "compare it with its own, in a bench of its own")
    folder = checkpoint.folder.absolute()
    if runtime == "vllm":
        name = f"{checkpoint.label} (baseline)"
        return Candidate(name=name, digest=checkpoint.digest, path=folder, tokenizer=folder)
    name, made = f"{checkpoint.label} F16 (baseline)", digest([checkpoint.digest, "f16"])
    return Candidate(name=name, digest=made, source=checkpoint, tokenizer=folder)


def _source(artifact: Candidate) -> Checkpoint:
    """Return the checkpoint that the artifact's record names.

    Raises:
        BadInput: it has no record, or the source is not to be found here.
    """
    remedy = "add --model with the checkpoint, or the unquantized GGUF, that it was made of"
    if artifact.origin is None:
        raise bad_input(artifact.path, "nothing beside it says what it was made of, so that it has no baseline", remedy)
    place = artifact.origin.place
    try:
        return read_checkpoint(Path(place), artifact.origin.label) if Path(place).is_dir() else load_model(place)
    except BadInput as error:
        what = f"its source {artifact.origin.label} is not to be had: {error.problems[0].what}"
        raise bad_input(artifact.path, what, remedy) from None


def _with_tokenizer(one: Candidate, model: str | None) -> Candidate:
    """Return the candidate with the tokenizer of `model`."""
    if model is None or find_gguf(model):
        what = "has no tokenizer.json beside it, by which prompts are made as long as they have to be"
        raise bad_input(one.path, what, "add --model with the checkpoint that it was made of")
    return one.model_copy(update={"tokenizer": load_model(model).folder.absolute()})


def _other_words(one: Candidate, draft: Candidate, place: str) -> list[Problem]:
    """Return the problem that the draft model's tokens are not the model's, if they are not."""
    assert one.path and draft.path
    ours, theirs = vocabulary(one.path), vocabulary(draft.path)
    if ours == theirs:
        return []
    what = f"has another vocabulary than {one.name}: {len(theirs)} tokens beside {len(ours)}"
    if len(ours) == len(theirs):
        differing = sum(number != ours.get(token) for token, number in theirs.items())
        what = f"has another vocabulary than {one.name}: {differing} of {len(ours)} tokens differ"
    return [Problem(f"--draft {place}", what, "a draft model proposes tokens: take one of the same tokenizer")]


def _named_apart(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates, each with a name of its own.

    Raises:
        BadInput: two are the same model.
    """
    for number, one in enumerate(candidates):
        if any(one.digest == other.digest for other in candidates[:number]):
            raise bad_input(one.path, "is there twice, as the same files", "name each model once")
    names = [one.name for one in candidates]
    return tuple(
        one if names.count(one.name) == 1 else one.model_copy(update={"name": f"{one.name} ({one.digest[:6]})"})
        for one in candidates
    )
