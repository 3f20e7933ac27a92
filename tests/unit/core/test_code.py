"""Kept results depend on the code that made them: all that a stage imports, and nothing else."""

import ast
import shutil
from pathlib import Path

import grimp
import pytest

from pipelines.checkpoint.headers import Checkpoint
from pipelines.core.code import CHOICE, ROOT, code_digest, imported_by
from pipelines.planning.stage import make_plan
from pipelines.quantization.choice import engine_modules

FOLDER = ROOT / "pipelines"


def stages() -> dict[str, set[str]]:
    """Return the modules that keep results, each with the stages that it keeps."""
    found: dict[str, set[str]] = {}
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "keep":
                assert isinstance(node.args[0], ast.Constant)
                found.setdefault(name_of(path), set()).add(str(node.args[0].value))
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """The imports as import-linter finds them, those of a type checker and of choices left out."""
    graph = grimp.build_graph("pipelines", exclude_type_checking_imports=True, cache_dir=None)
    for module in [module for module in graph.modules if module.endswith(f".{CHOICE}")]:
        for imported in graph.find_modules_directly_imported_by(module):
            graph.remove_import(importer=module, imported=imported)
    return graph


def test_stages_keep_results() -> None:
    assert {"quantize", "calibrate", "evaluate", "verify", "anatomy"} <= set[str]().union(*stages().values())


def test_an_edit_of_any_module_changes_the_keys_that_depend_on_it_and_no_others(
    graph: grimp.ImportGraph, tmp_path: Path
) -> None:
    keeping = sorted(stages())
    before = {module: code_digest((module,)) for module in keeping}
    for path in sorted(FOLDER.rglob("*.py")):
        name, root = name_of(path), tmp_path / name_of(path)
        shutil.copytree(FOLDER, root / "pipelines", copy_function=lambda one, two: Path(two).hardlink_to(one))
        edited = root / path.relative_to(ROOT)
        edited.unlink()
        edited.write_bytes(path.read_bytes() + b"# edited\n")
        changed = {module for module in keeping if before[module] != code_digest((module,), root)}
        assert changed == {one for one in keeping if one == name or name in graph.find_upstream_modules(one)}, name


def test_an_artifact_depends_on_the_engine_that_wrote_it_and_on_no_other(smollm2: Checkpoint) -> None:
    engines = "pipelines.quantization.engines."
    used = {}
    for name in ("fp8", "int4-gptq", "bnb-nf4", "gguf-q8_0", "gptq-gptqmodel"):
        chosen = engine_modules(make_plan(name, smollm2))
        used[name] = {module for module in imported_by(["pipelines.quantization.stage", *chosen]) if "engine" in module}
    assert engines + "streaming" in used["fp8"] and engines + "layerwise" not in used["fp8"]
    assert engines + "layerwise" in used["int4-gptq"] and engines + "streaming" not in used["int4-gptq"]
    assert engines + "bitsandbytes" in used["bnb-nf4"]
    assert engines + "llama_cpp" in used["gguf-q8_0"]
    assert {engines + "other_projects", "pipelines.environments.workers.gptqmodel_engine"} <= used["gptq-gptqmodel"]


def test_imports_for_a_type_checker_and_of_choices_do_not_count(tmp_path: Path) -> None:
    package = tmp_path / "pipelines"
    package.mkdir()
    files = {
        "__init__": "",
        "work": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import pipelines.types\n\n"
        "from pipelines import choice\n\ndef f():\n    from pipelines.inside import x\n",
        "choice": "def g():\n    import pipelines.either\n",
        "inside": "import json, pipelines.deep as deep\n",
        "deep": "",
        "types": "",
        "either": "",
    }
    for name, content in files.items():
        (package / f"{name}.py").write_text(content)
    found = imported_by(["pipelines.work", "pipelines.either"], tmp_path)
    assert found == {f"pipelines.{name}" for name in ("work", "choice", "inside", "deep", "either")}
