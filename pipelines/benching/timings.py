"""What was timed, as it is kept: each request of each load of each turn."""

from pipelines.benching.workload import Load, Workload
from pipelines.core.cache import Result
from pipelines.core.strict_yaml import Frozen


class Request(Frozen):
    """One answered request, as its sender saw it."""

    prompt: str
    """Digest of the prompt."""
    ttft: float
    """Milliseconds to the first token."""
    itl: float
    """Milliseconds between tokens after the first, on average."""
    e2e: float
    """Milliseconds to the last token."""
    prompt_tokens: int
    output_tokens: int


class Timed(Frozen):
    """One load of one turn."""

    load: Load
    seconds: float
    """Seconds from the first request that was sent to the last answer."""
    requests: tuple[Request, ...]


class Drafting(Frozen):
    """What a server counted of its draft model."""

    drafts: int
    drafted: int
    """Tokens that the draft model proposed."""
    accepted: int
    """Those of them that the model itself would have written, too."""


class Contender(Frozen):
    """A model as it is served."""

    name: str
    digest: str
    """Digest of what decides what the model computes."""
    artifact: str = ""
    """Digest over an artifact's files, as its record has it; empty for what has no record."""
    draft: str = ""
    """Digest of its draft model; empty where it has none."""
    over: tuple[str, ...] = ()
    """Names of the contenders that it is compared with."""


class Turn(Frozen):
    """One start of one contender's server, and what it did until it was stopped."""

    contender: str
    ready: float
    """Seconds until the server was healthy."""
    peak_memory: int
    """Bytes that the server's processes held at most in the machine's memory."""
    texts: tuple[str, ...]
    """Answers to fixed prompts, greedily and one at a time, before the load."""
    timed: tuple[Timed, ...]
    drafting: Drafting | None = None


class Bench(Result):
    """The turns of several contenders on one machine."""

    measured: str
    """Time at which it was finished (ISO 8601)."""
    runtime: str
    """Server, with its version."""
    device: str
    hardware: dict[str, str]
    workload: Workload
    contenders: tuple[Contender, ...]
    turns: tuple[Turn, ...]
