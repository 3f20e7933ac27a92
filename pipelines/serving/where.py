"""Sentences on the hardware that a runtime loads an artifact on, from the table of what loads where."""

import itertools
from collections.abc import Collection, Iterator, Sequence

from pipelines.core.strict_yaml import Frozen
from pipelines.formats.schemes import SchemeName
from pipelines.serving.loads import (
    NAMED,
    TITLES,
    VERSIONS,
    WORST,
    Answer,
    Loads,
    Named,
    Place,
    Runtime,
    Stored,
    loads_all,
)

Formats = Collection[tuple[SchemeName | None, int | None]]
ARCHITECTURES: dict[float, str] = {
    6.0: "Pascal", 7.0: "Volta", 7.5: "Turing", 8.0: "Ampere", 8.6: "Ampere", 8.9: "Ada", 9.0: "Hopper",
    10.0: "Blackwell", 10.3: "Blackwell", 12.0: "Blackwell",
}  # fmt: skip
"""Compute capability of NVIDIA's GPUs → its architecture."""
NAMES: dict[Named, str] = {"MI300": "AMD MI300", "MI350": "AMD MI350", "cpu": "x86 CPUs"}
PLACES: tuple[Place, ...] = (*ARCHITECTURES, *NAMED)


class Where(Frozen):
    """An answer, and the hardware on which a runtime gives it for an artifact."""

    answer: Answer
    reason: str
    places: tuple[Place, ...]

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.answer} on {hardware(self.places)}{reason}"


def where(runtime: Runtime, stored: Stored, formats: Formats) -> tuple[Where, ...]:
    """Return what `runtime` does with an artifact, and on which hardware, the best answer first."""
    found: dict[tuple[Answer, str], list[Place]] = {}
    for place in PLACES:
        one = loads_all(runtime, stored, formats, place)
        found.setdefault((one.answer, one.reason), []).append(place)
    spread = [Where(answer=answer, reason=reason, places=tuple(places)) for (answer, reason), places in found.items()]
    return tuple(sorted(spread, key=lambda one: -WORST.index(one.answer)))


def anywhere(runtime: Runtime, stored: Stored, formats: Formats) -> Loads:
    """Return what `runtime` does with an artifact on the hardware that suits it best."""
    found = (loads_all(runtime, stored, formats, place) for place in PLACES)
    return max(found, key=lambda one: WORST.index(one.answer))


def serves(runtime: Runtime, stored: Stored, formats: Formats) -> bool:
    """Tell whether `runtime` is known to serve an artifact somewhere."""
    return anywhere(runtime, stored, formats).answer in ("native", "emulated")


def line(runtime: Runtime, stored: Stored, formats: Formats) -> str:
    """Return a sentence on what `runtime` does with an artifact: on which hardware it serves it, or why it does not."""
    spread = where(runtime, stored, formats)
    known = [one for one in spread if one.answer in ("native", "emulated")] or spread[:1]
    return f"{TITLES[runtime]} {VERSIONS[runtime]}: {'; '.join(map(str, known))}"


def hardware(places: Sequence[Place]) -> str:
    """Return the names of hardware: `NVIDIA GPUs of compute capability 8.9 or later (Ada, Hopper, Blackwell)`."""
    if {*places} == {*PLACES}:
        return "any hardware"
    return ", ".join([*_nvidia([place for place in places if isinstance(place, float)]), *_named(places)])


def _named(places: Sequence[Place]) -> list[str]:
    return [NAMES[place] for place in places if not isinstance(place, float)]


def _nvidia(capabilities: Sequence[float]) -> Iterator[str]:
    """Yield one name for each run of neighbouring compute capabilities."""
    known = [*ARCHITECTURES]
    for _, run in itertools.groupby(enumerate(capabilities), key=lambda pair: known.index(pair[1]) - pair[0]):
        first, *others = [capability for _, capability in run]
        names = ", ".join(dict.fromkeys(ARCHITECTURES[one] for one in (first, *others)))
        last = others[-1] if others else first
        until = " or later" if last == known[-1] else f" to {last}" if last != first else ""
        yield f"NVIDIA GPUs of compute capability {first}{until} ({names})"
