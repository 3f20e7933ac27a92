"""What to try after a failure: recipes that raise the layers that lost most, within a size, and the loop over them."""

import re
from pathlib import Path

import pytest
import yaml

from pipelines.checkpoint.headers import Checkpoint, read_checkpoint
from pipelines.core.errors import BadInput
from pipelines.flow.journal import Run
from pipelines.flow.remedy import ATTEMPTS, ranked, recipes, remedies, suggestion
from pipelines.flow.repair import repair
from pipelines.flow.run import run
from pipelines.gating.decision import AT_CHANCE
from pipelines.recipe.load import as_yaml, load_recipe
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.record import Manifest
from pipelines.verification.results import LayerError
from tests.helpers.plans import plan_checkpoint, plan_gguf
from tests.helpers.suites import little


@pytest.fixture(scope="module")
def done(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A 4-bit run of a small model, whatever its verdict."""
    place = tmp_path_factory.mktemp("remedy")
    recipe = load_recipe("int4-gptq", [little(place, 6, 7), "quantize.group_size=32", "calibrate.samples=4"])
    return run(recipe, tiny, place / "out")


def failed(done: Run, recipe: Recipe | None = None, **sqnr: float) -> Manifest:
    """The record of `done` as one that failed, with layers' errors as given (by the end of their names)."""
    layers = [
        layer.model_copy(update={"sqnr": next((v for k, v in sqnr.items() if layer.module.endswith(k)), 30.0)})
        for layer in done.manifest.verification.layers
    ]
    record = done.manifest.model_copy(
        update={
            "gate": done.manifest.gate.model_copy(update={"verdict": "FAIL"}),
            "verification": done.manifest.verification.model_copy(update={"layers": tuple(layers)}),
        }
    )
    return record.model_copy(update={"recipe": recipe}) if recipe else record


def test_what_lost_most_for_its_bytes_comes_first_and_what_runtimes_fuse_stays_together(done: Run, tiny: Path) -> None:
    record = failed(done, down_proj=10.0, v_proj=15.0)
    order = ranked(record, plan_checkpoint(record.recipe, read_checkpoint(tiny)))
    assert [{name.rpartition(".")[2] for name in unit} for unit in order[:4]] == [{"down_proj"}] * 4
    assert {name.rpartition(".")[2] for name in order[4]} == {"q_proj", "k_proj", "v_proj"}
    assert sum(map(len, order)) == len(record.verification.layers)


def test_attempts_grow_and_stay_within_the_budget(done: Run, tiny: Path) -> None:
    model = read_checkpoint(tiny)
    record = failed(done, down_proj=10.0)
    tried = list(recipes(record, model))
    sizes = [plan_checkpoint(recipe, model).bytes_after for recipe in tried]
    assert 1 < len(tried) <= ATTEMPTS
    assert sizes == sorted(set(sizes))
    assert sizes[0] > record.size.bytes_after
    budget = (sizes[0] + sizes[-1]) // 2
    assert all(plan_checkpoint(recipe, model).bytes_after <= budget for recipe in recipes(record, model, budget))
    assert list(recipes(record, model, record.size.bytes_after)) == []
    everything = plan_checkpoint(tried[-1], model)
    assert {module.scheme for module in everything.quantized.values()} == {"W8A16"}


def test_eight_bit_layers_are_left_in_sixteen(done: Run, tiny: Path) -> None:
    record = failed(done, load_recipe("fp8"), down_proj=10.0)
    first = next(recipes(record, read_checkpoint(tiny)))
    plan = plan_checkpoint(first, read_checkpoint(tiny))
    kept = {module.name for module in plan.modules if module.scheme is None and "down_proj" in module.name}
    assert kept
    assert first.method.rules == ()


def test_gguf_tensors_become_q8_0(smollm2: Checkpoint, done: Run) -> None:
    recipe = load_recipe("gguf-iq4_xs")
    plan = plan_gguf(recipe, smollm2)
    layers = tuple(
        LayerError(module=tensor.name, sqnr=10.0 if "ffn_down" in tensor.name else 30.0)
        for tensor in plan.tensors
        if tensor.quantized
    )
    verification = done.manifest.verification.model_copy(update={"layers": layers})
    size = done.manifest.size.model_copy(update={"bytes_after": plan.bytes_after})
    record = failed(done, recipe).model_copy(update={"verification": verification, "size": size})
    first = plan_gguf(next(recipes(record, smollm2)), smollm2)
    raised = {tensor.name for tensor in first.tensors if tensor.type == "Q8_0"}
    was = {tensor.name for tensor in plan.tensors if tensor.type == "Q8_0"}
    assert raised - was
    assert all("ffn_down" in name for name in raised - was)
    assert plan.bytes_after < first.bytes_after


def test_a_suggestion_is_a_recipe_ready_to_run(done: Run, tiny: Path, tmp_path: Path) -> None:
    record = failed(done, down_proj=10.0)
    text = suggestion(record)
    assert text is not None
    (tmp_path / "try.yaml").write_text(text)
    recipe = load_recipe(str(tmp_path / "try.yaml"))
    assert plan_checkpoint(recipe, read_checkpoint(tiny)).bytes_after > record.size.bytes_after
    assert recipe.gate == record.recipe.gate
    assert re.search(r"re:model\\\.layers\\\.\(0\|1\|2\|3\)\\\.mlp\\\.down_proj\$", text)
    assert remedies([record, done.manifest.model_copy(update={"gate": passed(done)})]) == {record.artifact_digest: text}


def passed(done: Run) -> object:
    return done.manifest.gate.model_copy(update={"verdict": "PASS"})


def recipe_name(record: Manifest) -> str:
    return record.recipe.name


def test_every_recipe_survives_being_written(tmp_path: Path) -> None:
    for name in ("fp8", "int4-int8-mixed", "gguf-q4_k_m", "nvfp4"):
        (tmp_path / f"{name}.yaml").write_text(as_yaml(load_recipe(name)))
        assert load_recipe(str(tmp_path / f"{name}.yaml")) == load_recipe(name)
        assert yaml.safe_load(as_yaml(load_recipe(name)))["name"] == name


def test_other_projects_engines_have_no_remedy(done: Run) -> None:
    assert suggestion(failed(done, load_recipe("gptq-gptqmodel"))) is None


@pytest.mark.slow
def test_the_loop_ends_with_the_first_that_passes_and_records_each_attempt(
    done: Run, tiny: Path, tmp_path: Path
) -> None:
    record = failed(done, down_proj=10.0)
    attempts = repair(record, read_checkpoint(tiny), to=tmp_path / "repaired")
    said = [attempt.verdict.verdict for attempt in attempts]
    assert all(verdict != "PASS" for verdict in said[:-1])
    assert said[-1] == "PASS" or len(said) >= 2
    assert [attempt.manifest.recipe.name for attempt in attempts] == [
        f"{record.recipe.name}-repair{number}" for number in range(1, len(attempts) + 1)
    ]
    assert all(attempt.record.is_file() and attempt.report.is_file() for attempt in attempts)


def test_what_cannot_be_repaired_is_refused(done: Run, tiny: Path, smollm2: Checkpoint) -> None:
    with pytest.raises(BadInput, match="is not the model of that run"):
        repair(failed(done), smollm2)
    with pytest.raises(BadInput, match="has passed its gate"):
        repair(done.manifest.model_copy(update={"gate": passed(done)}), read_checkpoint(tiny))
    gate = done.manifest.gate.model_copy(update={"verdict": "INCONCLUSIVE", "reasons": (AT_CHANCE,)})
    at_chance = failed(done, down_proj=10.0).model_copy(update={"gate": gate})
    with pytest.raises(
        BadInput, match=r"says nothing of the artifact: the baseline is not shown .*\n +judge it by a suite"
    ):
        repair(at_chance, read_checkpoint(tiny))
    assert suggestion(at_chance) is None
    with pytest.raises(BadInput, match="no layer that could get more bits within"):
        repair(failed(done), read_checkpoint(tiny), budget=10)
