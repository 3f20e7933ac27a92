"""Preparing jobs: whatever can be checked is checked here, before the work."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipelines.checkpoint.dtypes import model_bytes
from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.load import load_model
from pipelines.core.cache import cache_dir
from pipelines.core.device import Dtype, check_room, choose_device
from pipelines.core.errors import Problem, Problems, bad_input, refuse
from pipelines.core.strict_yaml import Frozen
from pipelines.evaluation.checks import check_suite
from pipelines.evaluation.subject import Runtime
from pipelines.evaluation.tasks import check_tasks
from pipelines.gating.power import power_problems
from pipelines.planning.needs import disk_lacks
from pipelines.planning.plan import CheckpointPlan, GgufPlan, Plan
from pipelines.planning.stage import make_plan
from pipelines.publishing.places.folder import FolderTarget
from pipelines.publishing.places.place import Target
from pipelines.publishing.places.targets import parse_target
from pipelines.publishing.signature import Signer, check_signer
from pipelines.publishing.stage import check_targets, try_out
from pipelines.recipe.load import load_recipe, load_suite
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.suite import Suite
from pipelines.runtimes.generation import check_generation

ARTIFACTS = Path("artifacts")
"""Folder that a run publishes below, as `<model>/<recipe>`, unless a target is given."""
To = Path | str | Sequence[Path | str] | None
"""Target or targets of a run; None stands for `ARTIFACTS`."""


class Job(Frozen):
    """A run that nothing known speaks against."""

    plan: Plan
    suite: Suite
    targets: tuple[Target, ...]
    device: str
    dtype: Dtype
    """Type that was asked for; `plan.dtype` is the one that was chosen."""
    runtime: Runtime
    full: bool
    signer: Signer | None

    @property
    def recipe(self) -> Recipe:
        """Recipe that the plan is of."""
        return self.plan.recipe

    @property
    def evaluation_dtype(self) -> Dtype:
        """Type that both sides of the evaluation are asked to compute in."""
        dtypes: dict[Runtime, Dtype] = {"transformers": self.plan.dtype, "vllm": self.dtype, "llama.cpp": "auto"}
        return dtypes[self.runtime]


def prepare_runtimes(jobs: Sequence[Job], python: Path | None) -> Path | None:
    """Make the environments that `jobs` need: now, not after hours of quantizing. Return the interpreter that has vLLM,
    which is `python` where it is given."""
    from pipelines.environments import isolated

    runtimes = {job.runtime for job in jobs}
    for engine in sorted({job.recipe.engine for job in jobs} & {*isolated.names()}):
        isolated.make(engine)
    if "llama.cpp" in runtimes:
        isolated.make(isolated.LLAMA_CPP)
    return isolated.make("vllm") if "vllm" in runtimes and python is None else python


def prepare(
    recipes: Sequence[Recipe | str],
    overrides: Sequence[str],
    model: Checkpoint | str | Path | None,
    to: To,
    device: str | None,
    runtime: Runtime,
    full: bool,
    signer: Signer | None = None,
    dtype: Dtype = "auto",
) -> list[Job]:
    """Return a job for each recipe.

    Raises:
        BadInput: with every problem of all recipes, each once.
    """
    problems = Problems()
    known = [recipe for name in recipes if (recipe := problems.of(_load, name, overrides))]
    problems.found += _given_twice([recipe.name for recipe in known])
    checkpoint = model if isinstance(model, Checkpoint) else problems.of(load_model, model)
    if checkpoint:
        problems.of(check_generation, checkpoint.folder)
    device = problems.of(choose_device, device)
    if signer:
        problems.of(check_signer, signer)
    several = len(known) > 1
    jobs: list[Job] = []
    for recipe in known:
        if checkpoint is None:
            problems.of(_suite, recipe)
        elif job := problems.of(_job, recipe, checkpoint, to, several, device, runtime, full, signer, dtype):
            jobs.append(job)
    if not problems.found:
        problems.found += disk_lacks([job.plan for job in jobs])
    if not problems.found:
        for suite in dict.fromkeys(job.suite for job in jobs):
            problems.of(_check_questions, suite, jobs[0].plan.checkpoint)
    refuse(dict.fromkeys(problems.found))  # several recipes may have the same
    return jobs


def try_targets(jobs: Iterable[Job]) -> None:
    """Try whether the folders that `jobs` publish to can be made. That leaves a trace (the time of change of the folder
    above), so it is done when nothing else is wrong.

    Raises:
        BadInput: with every folder that cannot.
    """
    problems = Problems()
    for job in jobs:
        for target in job.targets:
            problems.of(try_out, target)
    refuse(dict.fromkeys(problems.found))


def _given_twice(names: Sequence[str]) -> list[Problem]:
    """Return a problem for each recipe that has the name of another."""
    twice = sorted({name for name in names if names.count(name) > 1})
    return [Problem(f"recipe {name}", "is given twice", "give it once, or another name") for name in twice]


def _job(
    recipe: Recipe,
    checkpoint: Checkpoint,
    to: To,
    several: bool,
    device: str | None,
    runtime: Runtime,
    full: bool,
    signer: Signer | None,
    dtype: Dtype,
) -> Job | None:
    """Return the job that takes `checkpoint` through `recipe`, one of `several` or the only one; None where no `device`
    is known, which is a problem of its own.

    Raises:
        BadInput: with every problem of this recipe.
    """
    problems = Problems()
    suite = problems.of(_suite, recipe)
    targets = problems.of(_targets, to, checkpoint.label, recipe.name, several) or ()
    folder = next((target.path for target in targets if isinstance(target, FolderTarget)), cache_dir())
    plan = problems.of(make_plan, recipe, checkpoint, folder, device, dtype)
    problems.of(check_targets, targets, checkpoint, recipe)
    if plan:
        problems.of(_check_runtime, plan, runtime, device)
    if plan and device:  # whatever the runtime, the source is also loaded in transformers
        problems.of(check_room, model_bytes(plan.checkpoint, plan.dtype), device)
    refuse(problems.found)
    if not (suite and plan and device):
        return None
    return Job(
        plan=plan,
        suite=suite,
        targets=targets,
        device=device,
        dtype=dtype,
        runtime="llama.cpp" if isinstance(plan, GgufPlan) else runtime,
        full=full,
        signer=signer,
    )


def _targets(to: To, label: str, recipe: str, several: bool) -> tuple[Target, ...]:
    """Return the places that the artifact of `recipe` goes to: of `several`, each gets a folder of its own."""
    if to is None:
        return (FolderTarget(path=(ARTIFACTS / label / recipe).absolute()),)
    problems = Problems()
    parts = [to] if isinstance(to, str | Path) else to
    targets = [problems.of(_target, text, label.rpartition("/")[2], recipe, several) for text in parts]
    refuse(problems.found)
    return tuple(filter(None, targets))


def _target(text: str | Path, model: str, recipe: str, several: bool) -> Target:
    target = parse_target(text, model=model, recipe=recipe)
    if not several or "{recipe}" in str(text):
        return target
    if isinstance(target, FolderTarget):
        return FolderTarget(path=target.path / recipe)
    raise bad_input(target, "would hold several recipes' artifacts", "put {recipe} into it")


def _load(recipe: Recipe | str, overrides: Sequence[str]) -> Recipe:
    return load_recipe(recipe, overrides) if isinstance(recipe, str) else recipe


def _suite(recipe: Recipe) -> Suite:
    """Return the recipe's suite, once lm-eval is known to have its tasks."""
    suite = load_suite(recipe.gate.suite)
    check_tasks(suite)
    return suite


def _check_questions(suite: Suite, checkpoint: Checkpoint) -> None:
    """Raise `BadInput` for a suite that cannot be asked of the model, or that could tell nothing of it."""
    asked = check_suite(suite, checkpoint)
    refuse(power_problems(suite, {task: found.independent for task, found in asked.items()}))


def _check_runtime(plan: Plan, runtime: Runtime, device: str | None) -> None:
    """Raise `BadInput` for a plan whose artifact the runtime could not run here."""
    match plan:
        case GgufPlan():
            if runtime == "vllm":
                what = "makes a GGUF, which is evaluated in llama.cpp"
                raise bad_input(f"recipe {plan.recipe.name}", what, "leave out --runtime vllm")
        case CheckpointPlan():
            _check_checkpoint_runtime(plan, runtime, device)


def _check_checkpoint_runtime(plan: CheckpointPlan, runtime: Runtime, device: str | None) -> None:
    """Raise `BadInput` for a plan whose checkpoint the runtime could not run here."""
    if runtime == "llama.cpp":
        what = f"makes a {plan.recipe.packing} checkpoint, which llama.cpp does not load"
        raise bad_input(f"recipe {plan.recipe.name}", what, "leave out --runtime llama.cpp")
    surplus = [name for name in plan.checkpoint.left_behind if name.endswith(".safetensors") and "/" not in name]
    if runtime == "vllm" and surplus:
        what = f"holds {surplus[0]}, which is no part of the model, and which vLLM would load, too"
        raise bad_input(plan.checkpoint.folder, what, "remove it, or leave out --runtime vllm")
    if runtime != "vllm" or device != "cpu":
        return
    from pipelines.runtimes.vllm import runs_on_cpu

    if reason := runs_on_cpu(plan.formats, plan.recipe.kv_cache, plan.recipe.packing):
        raise bad_input(f"recipe {plan.recipe.name}", reason, "leave out --runtime vllm")
