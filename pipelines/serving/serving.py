"""What is asked of a server, in no runtime's words: `configs` renders it in the words of each."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from pipelines.core.errors import bad_input
from pipelines.core.strict_yaml import Frozen
from pipelines.serving.loads import Runtime
from pipelines.serving.options import OPTIONS, Setting, Value
from pipelines.serving.served import Served

Goal = Literal["throughput", "cost", "latency", "long-context", "edge"]
GOALS: tuple[Goal, ...] = get_args(Goal)


class Draft(Frozen):
    """Tokens that are guessed ahead of a model, which reads them at once and keeps those that it would have written."""

    model: Path | None
    """Smaller model that guesses; None where what followed the same tokens before is the guess (n-gram)."""
    tokens: int = Field(default=4, gt=0, le=64)
    """Number of tokens that are guessed at a time."""


class Serving(Frozen):
    """What is asked of a server; None leaves a choice to the runtime."""

    context: int | None = Field(default=None, gt=0)
    """Tokens of a prompt and its answer together."""
    concurrency: int | None = Field(default=None, gt=0)
    """Number of requests that are computed at once."""
    kv_cache: Literal["fp8"] | None = None
    """Type of cached keys and values; the model's own unless given."""
    prefix_caching: bool = True
    """Whether keys and values of a prompt's beginning are kept for the next prompt that begins so."""
    tensor: int = Field(default=1, gt=0)
    """Number of GPUs that share each matrix."""
    pipeline: int = Field(default=1, gt=0)
    """Number of GPUs that share the layers."""
    data: int = Field(default=1, gt=0)
    """Number of copies of the model."""
    draft: Draft | None = None

    def settings(self) -> dict[Setting, Value]:
        """Return what has to be told to a runtime, by the name that `options` has for it."""
        said: dict[Setting, Value | None] = {
            "context": self.context,
            "concurrency": self.concurrency,
            "kv_cache": self.kv_cache,
            "no_prefix_caching": None if self.prefix_caching else True,
            **{way: count for way in WAYS if (count := getattr(self, way)) > 1},
        }
        if self.draft and self.draft.model:
            said |= {"draft": str(self.draft.model), "draft_tokens": self.draft.tokens}
        elif self.draft:
            said |= {"ngram": True, "ngram_tokens": self.draft.tokens}
        return {setting: value for setting, value in said.items() if value is not None}


Way = Literal["tensor", "pipeline", "data"]
WAYS: tuple[Way, ...] = get_args(Way)


class Aim(Frozen):
    """What a goal asks for where nothing else is said."""

    concurrency: int | None = None
    context: int | None = None
    """Most tokens of a prompt and its answer together; what the model was made for unless given."""
    kv_cache: Literal["fp8"] | None = None
    spread: Way = "tensor"
    """What several GPUs are used for."""


AIMS: dict[Goal, Aim] = {
    # Each GPU has a copy and waits for no other; many requests share one reading of the weights.
    "throughput": Aim(concurrency=256, spread="data"),
    "cost": Aim(concurrency=256, spread="data"),
    # Few share the time between two tokens of each; each matrix is read by all GPUs at once.
    "latency": Aim(concurrency=8),
    # Keys and values outweigh the weights: half as many bytes for each, and all GPUs' memory for one request.
    "long-context": Aim(concurrency=8, kv_cache="fp8"),
    "edge": Aim(concurrency=1, context=4096),
}
"""Goal → where to begin. None of these is measured: `quantgate bench` says what they are worth on a machine."""


def make_serving(
    runtime: Runtime,
    served: Served,
    *,
    goal: Goal | None = None,
    gpus: int = 1,
    context: int | None = None,
    concurrency: int | None = None,
    kv_cache: Literal["fp8"] | None = None,
    draft: Draft | None = None,
) -> Serving:
    """Return what is asked of a server of `runtime`: what is given, else what the `goal` asks for, else what the
    artifact was made for.

    Raises:
        BadInput: `context` is longer than what the model was made to read.
    """
    aim = AIMS[goal] if goal else Aim()
    limit = served.positions
    if context and limit and context > limit:
        raise bad_input(f"--context {context}", f"is longer than what {served.name} can read", f"at most {limit}")
    limits = [one for one in (limit, aim.context) if one]
    spread = next(way for way in (aim.spread, "tensor", "pipeline") if way in OPTIONS[runtime])
    serving = Serving(
        context=context or min(limits, default=None),
        concurrency=concurrency or aim.concurrency,
        kv_cache=kv_cache or aim.kv_cache or ("fp8" if served.cached_in_fp8 else None),
        draft=draft,
    )
    return serving.model_copy(update={spread: gpus})
