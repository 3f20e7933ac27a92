"""Checkpoints that are headers and no model: for what a plan makes of names and shapes that no small model has."""

from pipelines.checkpoint.headers import Checkpoint, TensorInfo
from pipelines.checkpoint.names import is_linear
from pipelines.core.cache import cache_dir
from pipelines.planning.anatomy import Anatomy, Kind, Place, examine
from pipelines.planning.plan import CheckpointPlan
from pipelines.planning.rehearsal import unreadable
from pipelines.planning.trial import Trial


def is_fake(checkpoint: Checkpoint) -> bool:
    """Tell whether a checkpoint is headers alone."""
    return not (checkpoint.folder / "tokenizer.json").exists()


UNTRIED = Trial(unused=(), refused="", clash="", retyped=(), bound={})


def unreadable_unless_fake(plan: CheckpointPlan) -> str:
    """What transformers says of an artifact; of one of headers alone, which it could not load, nothing."""
    return "" if is_fake(plan.checkpoint) else unreadable(plan)


def anatomy_of(checkpoint: Checkpoint) -> Anatomy:
    """What transformers makes of a real checkpoint; for headers alone, a model that has a module of every name."""
    if not is_fake(checkpoint):
        return examine(checkpoint)
    places = {t.name: Place(module=t.name.removesuffix(".weight"), kind=_kind(t)) for t in checkpoint.tensors}
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    return Anatomy(
        stage="anatomy", key="", inputs={}, versions={}, seconds=0, peak_memory=0, folder=cache_dir(),
        family="AutoModelForCausalLM", architecture="LlamaForCausalLM", places=places, missing=(), unexpected=(),
        mismatched=(), integers=(), trial=UNTRIED, inseparable=(), head="lm_head", head_is_embedding=tied,
    )  # fmt: skip


def _kind(tensor: TensorInfo) -> Kind:
    if len(tensor.shape) == 3:
        return "experts"
    return "linear" if is_linear(tensor) else "other"
