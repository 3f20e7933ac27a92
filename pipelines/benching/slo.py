"""A service level objective: what a request may take, the share of requests that has to keep that, and its proof."""

import math
import re

from pydantic import Field, model_validator

from pipelines.core.bounds import quantile
from pipelines.core.errors import bad_input, did_you_mean
from pipelines.core.strict_yaml import Frozen

SHARE = 0.99
UNITS = {"ms": 1.0, "s": 1000.0, "": 1.0}
"""Milliseconds in each unit of time that may be given."""
LIMITS = ("ttft", "itl", "e2e")
FORM = "ttft=500,itl=50,e2e=20s,share=0.99: times in ms, or in s where it says so"


class Slo(Frozen):
    """The most that a request may take, in milliseconds, and how many of all requests have to keep that."""

    ttft: float | None = Field(default=None, gt=0)
    """Time to the first token."""
    itl: float | None = Field(default=None, gt=0)
    """Mean time between a request's tokens after the first."""
    e2e: float | None = Field(default=None, gt=0)
    """Time to the last token."""
    share: float = Field(default=SHARE, gt=0, lt=1)
    """Share of requests that have to keep the limits."""

    @model_validator(mode="after")
    def _limits_something(self) -> "Slo":
        if self.ttft is None and self.itl is None and self.e2e is None:
            raise ValueError("limits nothing")
        return self

    def is_kept(self, ttft: float, itl: float, e2e: float) -> bool:
        """Tell whether a request of these times, in milliseconds, keeps every limit."""
        limits = ((self.ttft, ttft), (self.itl, itl), (self.e2e, e2e))
        return all(limit is None or took <= limit for limit, took in limits)

    def __str__(self) -> str:
        limits = [f"{name} ≤ {value:g} ms" for name in LIMITS if (value := getattr(self, name)) is not None]
        return ", ".join(limits)


def parse_slo(text: str) -> Slo:
    """Return the SLO that `text` says, such as `ttft=500,itl=50`.

    Raises:
        BadInput: it is none.
    """
    where = f"--slo {text}"
    values: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        number = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|)", value)
        if name not in (*LIMITS, "share"):
            raise bad_input(where, f"'{name}' is nothing that it limits", did_you_mean(name, LIMITS) or FORM)
        if name in values:
            raise bad_input(where, f"{name} is given twice", FORM)
        if number is None or (name == "share" and number[2]):
            raise bad_input(where, f"'{part.strip()}' has no value that can be understood", FORM)
        values[name] = float(number[1]) * UNITS[number[2]]
    try:
        return Slo(**values)
    except ValueError:
        what = "limits no time" if not values.keys() & {*LIMITS} else "needs times above 0, and a share between 0 and 1"
        raise bad_input(where, what, FORM) from None


def shown_share(kept: float, requests: int, confidence: float) -> float:
    """Return the lower bound of a share of which `kept` of `requests` were seen (Wilson's score interval, one side)."""
    z2 = quantile(confidence) ** 2
    share = kept / requests
    spread = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * requests)) / requests)
    return (share + z2 / (2 * requests) - spread) / (1 + z2 / requests)


def requests_to_show(share: float, confidence: float) -> int:
    """Return how many requests show `share` when every one of them keeps the limits."""
    return math.ceil(share / (1 - share) * quantile(confidence) ** 2)
