"""The work that a server is given: how long prompts and answers are, and in which ways they are sent."""

from typing import Annotated, Literal

from pydantic import Field

from pipelines.core.strict_yaml import Frozen

ROOM = 64
"""Tokens that a server reads beside prompt and answer, at most: those that its tokenizer adds."""


class AtATime(Frozen):
    """A load that always has as many requests running: the next is sent when one is answered."""

    kind: Literal["at-a-time"] = "at-a-time"
    requests: int = Field(gt=0)

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.requests} at a time"


class Arriving(Frozen):
    """A load whose requests arrive at random (as in a Poisson process), whether the others are answered or not."""

    kind: Literal["arriving"] = "arriving"
    rate: float = Field(gt=0, allow_inf_nan=False)
    """Requests a second, on average."""

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.rate:g}/s"


Load = Annotated[AtATime | Arriving, Field(discriminator="kind")]
"""A way in which requests are sent."""


class Workload(Frozen):
    """The prompts, the answers, and the loads, one after the other, that each server gets in each of its turns."""

    prompt_tokens: int = Field(gt=0)
    output_tokens: int = Field(gt=1)
    """Tokens of every answer: servers are told to go on after an end token, so that all write as much."""
    requests: int = Field(gt=1)
    """Requests of each load in each turn, each with a prompt of its own."""
    concurrency: int = Field(gt=0)
    """Requests that a server works on at once; others wait."""
    loads: tuple[Load, ...] = Field(min_length=1)
    seed: int = 42
    """Seed of the prompts, and of the times of arrival."""

    @property
    def context(self) -> int:
        """Tokens that a request takes at most."""
        return self.prompt_tokens + self.output_tokens + ROOM


def loads(rates: tuple[float, ...], concurrency: int) -> tuple[Load, ...]:
    """Return the loads for these `rates` of arrival; without any, one request at a time and as many as are worked on
    at once: what one user waits for, and what the server can do."""
    if rates:
        return tuple(Arriving(rate=rate) for rate in sorted({*rates}))
    return tuple(AtATime(requests=count) for count in sorted({1, concurrency}))
