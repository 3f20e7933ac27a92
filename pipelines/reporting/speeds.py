"""Speed beside retention: what `quantgate bench` measured of the artifacts of finished runs, on this machine."""

from collections.abc import Iterator, Sequence

from pipelines.benching.measured import Figure, Measured, measure
from pipelines.benching.summary import benches_of
from pipelines.benching.timings import Bench
from pipelines.core.strict_yaml import Frozen
from pipelines.reporting.record import Manifest


class Speed(Frozen):
    """How many tokens a second a server wrote with an artifact, beside what it wrote with the artifact's baseline."""

    ratio: Figure
    load: str
    runtime: str
    machine: str
    measured: str
    """Time of the bench (ISO 8601)."""


def speed_of(run: Manifest) -> Speed | None:
    """Return the speed of a run's artifact by the newest bench that has it and its baseline; None where none has.

    Of several loads it is the last, under which a server works on the most requests at once.
    """
    found = (one for bench in benches_of(run.artifact_digest) for one in _speeds(bench, run.artifact_digest))
    return next(found, None)


def _speeds(bench: Bench, artifact: str) -> Iterator[Speed]:
    names = {one.name for one in bench.contenders if one.artifact == artifact and not one.draft}
    for one in measure(bench):
        if one.name in names and (ratio := _last_ratio(one)):
            hardware = bench.hardware
            yield Speed(
                ratio=ratio[1],
                load=ratio[0],
                runtime=bench.runtime,
                machine=hardware.get("gpu") or f"{hardware['processor']}, {hardware['cores']} cores",
                measured=bench.measured,
            )


def _last_ratio(one: Measured) -> tuple[str, Figure] | None:
    """Return the name of the last load with a ratio of tokens a second, and that ratio."""
    ratios = [(ratio.load.name, ratio.tokens_per_second) for ratio in one.ratios if ratio.tokens_per_second]
    return ratios[-1] if ratios else None


def bounded(figure: Figure) -> str:
    """Return an estimate with its bounds: `1.24 (1.20 … 1.28)`."""
    return f"{figure.value:.2f} ({figure.lower:.2f} … {figure.upper:.2f})"


def measured_runs(runs: Sequence[Manifest]) -> list[tuple[Manifest, Speed]]:
    """Return the runs whose artifacts' speed was measured, with that speed."""
    return [(run, speed) for run in runs if (speed := speed_of(run))]
