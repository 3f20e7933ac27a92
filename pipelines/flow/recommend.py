"""Where to begin: an order of recipes for a model, a hardware and a goal, each with why and the commands that prove it.

What can be served is known by the plan, which reads no weights, and by the table of what loads where; the order is that
of a roofline, or of what was measured here. Recipes whose speeds are within `ALIKE` of each other are alike to a
roofline, and other things decide among them. What was tried here and did not keep what is asked is left out.
"""

import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.errors import Problem, refuse
from pipelines.core.strict_yaml import Frozen
from pipelines.core.text import percent, size
from pipelines.flow.candidates import Candidate, LeftOut, candidate, reads, unquantized
from pipelines.flow.expected import Expected, expected
from pipelines.gating.power import typical_changes
from pipelines.planning.stage import check_model
from pipelines.recipe import library
from pipelines.recipe.load import load_recipe
from pipelines.serving import second_opinion
from pipelines.serving.hardware import CPU, Hardware
from pipelines.serving.key_values import number
from pipelines.serving.loads import TITLES, Answer, Runtime
from pipelines.serving.roofline import PRIOR, Measured, Rates, Times, Traffic, Work, fit, times
from pipelines.serving.second_opinion import Opinion, Question
from pipelines.serving.serving import Goal

CONCURRENCY: dict[Goal, int] = {"throughput": 64, "cost": 64, "latency": 1, "long-context": 4, "edge": 1}
"""Requests at once on GPUs, unless they are given."""
CPU_CONCURRENCY = 4
"""The same on a processor, at most."""
CONTEXT, LONGEST_CONTEXT = 2048, 131072
"""Tokens of a request, unless they are given; for long contexts, as many as the model has positions, and no more."""
WRITTEN = 8
"""One token in so many of a request is written, the others are read."""
USABLE = 0.9
"""Share of the memory that weights, keys and values may take; what runtimes themselves need has the rest."""
ALIKE = 1.1
"""Speeds that differ by less than this factor are not told apart: the roofline's of FP8 are as near to NVIDIA's."""
SLOWER = 0.95
"""Speed against 16 bits below which a recipe is no choice where 16 bits fit."""


class Wish(Frozen):
    """What is asked for."""

    goal: Goal
    hardware: Hardware
    gpus: int = Field(default=1, gt=0)
    keep: float = Field(default=0.99, gt=0, le=1)
    """Share of the baseline that the artifact must keep."""
    context: int | None = Field(default=None, gt=0)
    """Tokens of a request, prompt and answer."""
    concurrency: int | None = Field(default=None, gt=0)
    """Requests at once."""
    measured: tuple[Measured, ...] = ()
    """Speeds that were measured of this model on this hardware."""


class Second(Frozen):
    """A second opinion on a recipe's speed."""

    speed: float | None = None
    """Speed against 16 bits, as that of a choice; None where there is no answer."""
    why: str = ""
    """Reason why there is none."""


class Choice(Frozen):
    """A recipe that fits, with what speaks for it."""

    recipe: str
    runtime: Runtime
    answer: Answer
    """What the runtime does with such weights on the hardware."""
    hardware: str
    gpus: int
    """How many of the hardware serve it."""
    memory: int
    """Bytes of weights, keys and values of all requests."""
    bytes: int
    """Bytes of the artifact's weights."""
    speed: float
    """Speed for the goal, against 16 bits on as many GPUs as fit them; for cost, by GPU."""
    basis: Literal["roofline", "measured here", "measured on another processor"]
    expected: Expected
    changes: float
    """Share of answers that change, as is typical of the recipe's number format."""
    calibrated: bool
    """Whether text is needed to quantize."""
    engine: str
    why: tuple[str, ...]
    commands: tuple[str, ...]


class Recommendation(Frozen):
    """Recipes in order, and those that are none."""

    model: str
    parameters: int
    goal: Goal
    hardware: str
    source: str
    """Origin of the hardware's figures."""
    gpus: int
    available: int
    """Bytes of memory that all GPUs have for it, or the processor."""
    context: int
    concurrency: int
    keep: float
    memory_16_bits: int
    """Bytes of weights, keys and values without quantization."""
    choices: tuple[Choice, ...]
    """Recipes that fit, the first to begin with."""
    left_out: tuple[LeftOut, ...]
    asked: dict[str, Second] = Field(default={})
    """Recipe among the choices → what aiconfigurator says of its speed; empty where it was not asked."""


def recommend(checkpoint: Checkpoint, wish: Wish, model: str | None = None) -> Recommendation:
    """Return the recipes to begin with for `checkpoint`, in order; no weight is read. Commands call it `model`, as the
    user does.

    Raises:
        BadInput: no recipe can be made of the model, or the wish makes no sense.
    """
    check_model(checkpoint)
    traffic = _traffic(checkpoint, wish)
    plain = unquantized(checkpoint)
    rates = _rates(wish, plain)
    found = [candidate(load_recipe(name), checkpoint, wish.hardware, rates) for name in library.names("recipe")]
    left_out = [one for one in found if isinstance(one, LeftOut)]
    choices: list[Choice] = []
    for one in (one for one in found if isinstance(one, Candidate)):
        made = _choice(one, wish, traffic, rates, model)
        if isinstance(made, LeftOut):
            left_out.append(made)
        else:
            choices.append(made)
    return Recommendation(
        model=checkpoint.label,
        parameters=checkpoint.parameters,
        goal=wish.goal,
        hardware=wish.hardware.name,
        source=wish.hardware.source,
        gpus=wish.gpus,
        available=int(USABLE * wish.gpus * wish.hardware.memory),
        context=traffic.read + traffic.written,
        concurrency=traffic.concurrency,
        keep=wish.keep,
        memory_16_bits=_memory(checkpoint.weight_bytes, plain, traffic),
        choices=tuple(ordered(choices, wish.keep)),
        left_out=tuple(left_out),
    )


def with_second_opinion(made: Recommendation, checkpoint: Checkpoint, hardware: Hardware) -> Recommendation:
    """Return `made` with what aiconfigurator says of the speed of its choices. Their order stays ours.

    Raises:
        BadInput: it knows nothing of the hardware.
        QuantgateError: it could not be installed, or ended.
    """
    asked = {one.recipe: question for one in made.choices if (question := _question(one))}
    alone = sorted({question.gpus for question in asked.values()})
    plain = [
        Question(runtime="vllm", scheme=None, fp8_cache=False, gpus=_plain_gpus(made, hardware, gpus)) for gpus in alone
    ]
    answers = second_opinion.ask(
        checkpoint.folder, hardware, _requests(made.concurrency, made.context), [*plain, *asked.values()]
    )
    baselines = {gpus: _by_gpu(one, question) for gpus, one, question in zip(alone, answers, plain, strict=False)}
    opinions = dict(zip(asked, answers[len(plain) :], strict=True))
    found = {name: _second(opinions[name], asked[name], baselines[asked[name].gpus]) for name in asked}
    others = {
        one.recipe: Second(why="not asked, it has no figures of such weights, or none to be trusted")
        for one in made.choices
    }
    return made.model_copy(update={"asked": others | found})


def _question(choice: Choice) -> Question | None:
    recipe = load_recipe(choice.recipe)
    if recipe.makes_gguf or len(recipe.schemes) > 1:
        return None
    return Question(
        runtime=choice.runtime, scheme=recipe.schemes[0], fp8_cache=recipe.kv_cache is not None, gpus=choice.gpus
    )


def _plain_gpus(made: Recommendation, hardware: Hardware, gpus: int) -> int:
    """Return how many GPUs 16 bits are compared on with a recipe on so many."""
    fitting = _fewest(made.memory_16_bits, hardware)
    return fitting if made.goal == "cost" else max(fitting, gpus)


def _by_gpu(opinion: Opinion, question: Question) -> float | None:
    return opinion.tokens_per_second / question.gpus if opinion.tokens_per_second else None


def _second(opinion: Opinion, question: Question, baseline: float | None) -> Second:
    ours = _by_gpu(opinion, question)
    if ours is None or baseline is None:
        return Second(why=opinion.why or "it has no answer for 16 bits")
    return Second(speed=ours / baseline)


def _traffic(checkpoint: Checkpoint, wish: Wish) -> Traffic:
    most = number(checkpoint.config, "positions")
    context = wish.context or min(most or CONTEXT, LONGEST_CONTEXT if wish.goal == "long-context" else CONTEXT)
    refuse(_impossible(checkpoint, wish, context, most))
    usual = min(CONCURRENCY[wish.goal], CPU_CONCURRENCY if wish.hardware.is_cpu else sys.maxsize)
    return _requests(wish.concurrency or usual, context)


def _requests(concurrency: int, context: int) -> Traffic:
    written = max(1, context // WRITTEN)
    return Traffic(concurrency=concurrency, read=max(1, context - written), written=written)


def _impossible(checkpoint: Checkpoint, wish: Wish, context: int, most: int) -> Iterable[Problem]:
    if most and context > most:
        yield Problem(f"--context {context}", f"is more than the {most} positions of {checkpoint.label}", "give fewer")
    if wish.hardware.is_cpu and wish.gpus > 1:
        yield Problem(f"--gpus {wish.gpus}", "is for hardware that is no processor", "leave it out, or give --hardware")


def _rates(wish: Wish, plain: Work) -> Rates:
    """Return the rates of this hardware, if two models or more were measured on it by one request at once."""
    alone = [one for one in wish.measured if one.concurrency == 1]
    if len({one.bytes for one in alone}) < 2:
        return PRIOR
    try:
        return fit(alone, sum(one.count for one in plain.weights), wish.hardware.bandwidth)
    except ValueError:  # noise: the roofline's own figures say more
        return PRIOR


def _choice(one: Candidate, wish: Wish, traffic: Traffic, rates: Rates, model: str | None) -> Choice | LeftOut:
    """Return the recipe as a choice, or why it is none."""
    name, plan = one.recipe.name, one.plan
    if wish.goal == "edge" and one.runtime != "llama.cpp":
        return LeftOut(recipe=name, why="is no GGUF, which is what runs at the edge")
    awaited = expected(one.recipe, plan.checkpoint)
    if tried := _tried(awaited, wish.keep):
        return LeftOut(recipe=name, why=tried)
    memory = _memory(plan.bytes_after, one.work, traffic)
    gpus = _fewest(memory, wish.hardware)
    if gpus > wish.gpus:
        room = int(USABLE * wish.gpus * wish.hardware.memory)
        more = "" if wish.hardware.is_cpu else f"; {gpus} {wish.hardware.name} would hold it"
        return LeftOut(recipe=name, why=f"does not fit: it takes {size(memory)}, there are {size(room)}{more}")
    used = gpus if wish.goal == "cost" else wish.gpus
    speed, basis = _speed(one, wish, used, traffic, rates)
    if speed < SLOWER and _fits_plain(one, wish, traffic):
        how = (
            f"{speed:.2g} of the speed of 16 bits, by {'the roofline' if basis == 'roofline' else 'what was measured'}"
        )
        return LeftOut(recipe=name, why=f"has {how}, and those fit")
    return Choice(
        recipe=name,
        runtime=one.runtime,
        answer=one.loads.answer,
        hardware=wish.hardware.name,
        gpus=used,
        memory=memory,
        bytes=plan.bytes_after,
        speed=speed,
        basis=basis,
        expected=awaited,
        changes=typical_changes(one.recipe.loss_class).discordance,
        calibrated=one.recipe.calibrated,
        engine=one.recipe.engine,
        why=tuple(_why(one)),
        commands=tuple(_commands(one, used, traffic, model, wish.keep)),
    )


def _tried(awaited: Expected, keep: float) -> str:
    """Return what was tried on this model and did not keep enough; empty where nothing was, or something did."""
    kept = [one.retention for one in awaited.tried if one.retention is not None and one.retention >= keep]
    failed = [one for one in awaited.tried if one.verdict == "FAIL"]
    if kept or not failed:
        return ""
    last = failed[-1]
    how = "" if last.retention is None else f", it kept {percent(round(last.retention, 4))}"
    return f"failed here: FAIL on suite {last.suite}{how}"


def _memory(weight_bytes: int, work: Work, traffic: Traffic) -> int:
    return weight_bytes + int(traffic.tokens * work.cache_bytes)


def _fits_plain(one: Candidate, wish: Wish, traffic: Traffic) -> bool:
    """Tell whether the model fits as it is."""
    checkpoint = one.plan.checkpoint
    return _fewest(_memory(checkpoint.weight_bytes, unquantized(checkpoint), traffic), wish.hardware) <= wish.gpus


def _fewest(memory: int, hardware: Hardware) -> int:
    """Return how many of the hardware hold so many bytes."""
    return -(-memory // int(USABLE * hardware.memory))


def _speed(
    one: Candidate, wish: Wish, gpus: int, traffic: Traffic, rates: Rates
) -> tuple[float, Literal["roofline", "measured here", "measured on another processor"]]:
    """Return the speed against 16 bits, and by what that is known."""
    if measured := _measured(one, wish, traffic):
        return measured, "measured here"
    if one.speed is not None:
        return one.speed, "measured on another processor"
    plain = unquantized(one.plan.checkpoint, rates)
    fitting = _fewest(_memory(one.plan.checkpoint.weight_bytes, plain, traffic), wish.hardware)
    others = fitting if wish.goal == "cost" else max(fitting, gpus)
    ours = times(one.work, wish.hardware, gpus, traffic, rates)
    theirs = times(plain, wish.hardware, others, traffic, rates)
    return _of(ours) / gpus / (_of(theirs) / others), "roofline"


def _of(taken: Times) -> float:
    return taken.tokens_per_second


def _measured(one: Candidate, wish: Wish, traffic: Traffic) -> float | None:
    """Return the speed over the baseline's, where both were measured with as many requests at once."""
    alike = [m for m in wish.measured if (m.runtime, m.concurrency) == (one.runtime, traffic.concurrency)]
    rates = {m.recipe: m.tokens_per_second for m in alike}
    return rates[one.recipe.name] / rates[None] if {one.recipe.name, None} <= rates.keys() else None


def ordered(choices: Iterable[Choice], keep: float) -> list[Choice]:
    """Return `choices` in order: those first that may keep what is asked, then those of which nothing is known; among
    them the fastest, and of those that are as fast, what computes as its format says, needs least and changes least."""
    order: list[Choice] = []
    left = sorted(choices, key=lambda one: (_doubt(one, keep), -one.speed))
    while left:
        first = left[0]
        alike = [one for one in left if _doubt(one, keep) == _doubt(first, keep) and one.speed * ALIKE > first.speed]
        order += sorted(alike, key=_merits)
        left = left[len(alike) :]
    return order


def _doubt(choice: Choice, keep: float) -> tuple[int, bool]:
    """Return what makes a choice come after others, however fast it is: what it is not expected to keep; and a speed
    that compares with no other runtime's: of a GGUF on a GPU, of vLLM on a processor."""
    unsure = choice.basis != "measured here" and (choice.runtime == "llama.cpp") != (choice.hardware == CPU)
    return {True: 0, None: 1, False: 2}[choice.expected.may_keep(keep)], unsure


def _merits(choice: Choice) -> tuple[object, ...]:
    return (
        choice.answer != "native",
        choice.engine not in ("quantgate", "llama.cpp"),
        round(choice.changes, 1),  # which schemes of as many bits differ in by less than models do
        choice.calibrated,
        -round(choice.speed, 2),
        -(choice.expected.low or 0.0),
        choice.recipe,
    )


def _why(one: Candidate) -> Iterable[str]:
    yield f"a token reads {reads(one.work)}"
    if one.plan.recipe.kv_cache:
        yield "keys and values take half"
    if one.loads.reason:
        yield f"{TITLES[one.runtime]}: {one.loads.reason}"
    if not one.recipe.calibrated:
        yield "needs no calibration"


def _commands(one: Candidate, gpus: int, traffic: Traffic, model: str | None, keep: float) -> Sequence[str]:
    name = one.recipe.name
    artifact = shlex.quote(f"artifacts/{one.plan.checkpoint.label.rpartition('/')[2]}/{name}")
    of_model = f" --model {shlex.quote(model)}" if model else ""
    asked_for = f" --set gate.retention={keep:g}" if keep != one.recipe.gate.retention else ""
    commands = [f"quantgate run {name}{of_model}{asked_for}"]
    if one.runtime in ("vllm", "llama.cpp"):
        commands.append(f"quantgate bench {artifact} --baseline --runtime {one.runtime}")
    asked = f"--context {traffic.read + traffic.written} --concurrency {traffic.concurrency}"
    more = f" --gpus {gpus}" if gpus > 1 else ""
    return [*commands, f"quantgate serve-config {artifact} --runtime {one.runtime} {asked}{more}"]
