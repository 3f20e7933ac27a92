"""What a bench says, as one record: figures, ratios, costs, servers needed, and where they hold."""

import json
from collections.abc import Iterator

from pipelines.benching.capacity import HEADROOM, Capacity, capacity, dollars_per_million, requests_needed
from pipelines.benching.measured import Measured, measure
from pipelines.benching.slo import Slo
from pipelines.benching.timings import Bench
from pipelines.benching.workload import Arriving, Workload
from pipelines.core.cache import cache_dir
from pipelines.core.errors import Problem, refuse
from pipelines.core.strict_yaml import Frozen


class Wanted(Frozen):
    """What is to be told beside the figures."""

    slo: Slo | None = None
    dollars_per_hour: float | None = None
    """Price of the machine."""
    traffic: float | None = None
    """Requests a second that all servers together are to take."""
    headroom: float = HEADROOM


class Cost(Frozen):
    """What a million output tokens of one contender cost, for each load in its order, and the servers it needs."""

    name: str
    dollars_per_million: tuple[float, ...] = ()
    capacity: Capacity | None = None


class Summary(Frozen):
    """The result of a bench, which holds for this machine, these versions and this workload only."""

    measured: str
    """Time at which it was finished (ISO 8601)."""
    runtime: str
    device: str
    hardware: dict[str, str]
    workload: Workload
    wanted: Wanted
    contenders: tuple[Measured, ...]
    costs: tuple[Cost, ...] = ()


def check_wanted(wanted: Wanted, workload: Workload) -> None:
    """Refuse what this workload cannot tell.

    Raises:
        BadInput: with every problem.
    """
    refuse(_problems(wanted, workload))


def _problems(wanted: Wanted, workload: Workload) -> Iterator[Problem]:
    if wanted.traffic is None:
        return
    where = f"--traffic {wanted.traffic:g}"
    if wanted.slo is None:
        yield Problem(where, "says nothing without what a request may take", "add --slo ttft=500,itl=50")
    if not isinstance(workload.loads[0], Arriving):
        yield Problem(where, "needs rates of arrival to be tried", "add --rates 1,2,4")
    if wanted.slo and (needed := requests_needed(wanted.slo)) > workload.requests:
        what = f"cannot show that {wanted.slo.share:g} of requests keep the SLO, even if all of them do"
        yield Problem(f"--requests {workload.requests}", what, f"give --requests {needed} or more, or a lower share")


def summarize(bench: Bench, wanted: Wanted) -> Summary:
    """Return what `bench` says."""
    contenders = measure(bench, wanted.slo)
    return Summary(
        measured=bench.measured,
        runtime=bench.runtime,
        device=bench.device,
        hardware=bench.hardware,
        workload=bench.workload,
        wanted=wanted,
        contenders=contenders,
        costs=tuple(_cost(one, wanted) for one in contenders) if wanted.dollars_per_hour or wanted.traffic else (),
    )


def _cost(measured: Measured, wanted: Wanted) -> Cost:
    price = wanted.dollars_per_hour
    return Cost(
        name=measured.name,
        dollars_per_million=tuple(dollars_per_million(one.tokens_per_second, price) for one in measured.figures)
        if price
        else (),
        capacity=capacity(measured, wanted.slo, wanted.traffic, wanted.headroom)
        if wanted.slo and wanted.traffic
        else None,
    )


def benches_of(artifact: str) -> list[Bench]:
    """Return the finished benches of an artifact, which is known by the digest over its files, the newest first."""
    found = []
    for file in (cache_dir() / "stages" / "bench").glob("*/result.json"):
        try:
            kept = Bench.model_validate({**json.loads(file.read_text(encoding="utf-8")), "folder": file.parent})
        except (OSError, ValueError):
            continue  # of another version, or being written
        if any(one.artifact == artifact for one in kept.contenders):
            found.append(kept)
    return sorted(found, key=lambda bench: bench.measured, reverse=True)
