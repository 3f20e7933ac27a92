"""Releases: models × recipes × targets in one file, on small models and real servers."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pipelines import quantize
from pipelines.calibration.tokens import CalibrationTokens
from pipelines.core.cache import cache_dir
from pipelines.core.errors import BadInput
from pipelines.flow import forecast
from pipelines.flow.estimate import Finished
from pipelines.flow.forecast import forecast_release
from pipelines.flow.outcome import Outcome
from pipelines.flow.release import prepare_release, run_release
from pipelines.flow.release_file import load_release
from pipelines.planning.plan import Plan
from pipelines.publishing.places.place import files_of
from pipelines.publishing.stage import check_published
from pipelines.quantization.artifact import Artifact
from tests.conftest import EASY, Cli, make_tiny, own_cache
from tests.helpers.servers import Registry

QUANTIZE = "quantize: {method: rtn, scheme: %s, ignore: [lm_head]}\n"
WRITTEN = {"release.json", "junit.xml", "summary.md", "report.html"}


@pytest.fixture(scope="session")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two small models, of different sizes."""
    from pipelines.checkpoint.load import load_model

    folder = tmp_path_factory.mktemp("models")
    return tiny, make_tiny(folder / "small", load_model(), num_hidden_layers=2)


def write_release(
    folder: Path, models: tuple[Path, ...], targets: tuple[str, ...], recipes: str = "[eight.yaml]"
) -> Path:
    """A release file of recipes that are beside it."""
    (folder / "easy.yaml").write_text(EASY)
    for name, scheme, retention in (("eight", "W8A16", 0.51), ("fp", "FP8_DYNAMIC", 0.51)):
        gate = f"gate: {{suite: {folder}/easy.yaml, retention: {retention}}}\n"
        (folder / f"{name}.yaml").write_text(f"version: 1\nname: {name}\nsummary: x\n{QUANTIZE % scheme}{gate}")
    path = folder / "release.yaml"
    lines = ["version: 1", "name: spring", f"models: {[*map(str, models)]}", f"recipes: {recipes}"]
    path.write_text("\n".join([*lines, f"targets: {[*targets]}", ""]))
    return path


@pytest.mark.long
@pytest.mark.usefixtures("s3")
def test_a_release_reaches_every_place_from_one_file(
    models: tuple[Path, Path], docker: Registry, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTGATE_CACHE", str(own_cache(tmp_path / "cache", cache_dir())))
    targets = ("out/{model}/{recipe}", "s3://releases/{release}/{model}/{recipe}", docker.target("{model}", "{recipe}"))
    file = write_release(tmp_path, models, targets, "[eight.yaml, ./fp.yaml]")
    done = cli("release", file, "--out", tmp_path / "reports")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "reports").iterdir()} == WRITTEN
    outcome = json.loads((tmp_path / "reports" / "release.json").read_text())
    assert outcome["exit_code"] == 0 and outcome["finished"]
    assert [(item["model"], item["recipe"]) for item in outcome["items"]] == [
        ("tiny", "eight"), ("tiny", "fp"), ("small", "eight"), ("small", "fp")
    ]  # fmt: skip
    for item in outcome["items"]:
        assert item["published"] == item["targets"] and len(item["targets"]) == 3
        for target in item["targets"]:
            checked = check_published(target)
            assert checked.manifest.artifact_digest == item["artifact_digest"]
            assert checked.manifest.recipe.name == item["recipe"]
    assert "s3://releases/spring/tiny/eight" in done.stdout
    evaluated = re.findall(
        r"^fp: \d of 4.*?^evaluate: ([\d.]+ (?:s|min|h)\b.*?)$", done.stderr, re.MULTILINE | re.DOTALL
    )
    assert len(evaluated) == 2, done.stderr
    assert all(line.endswith(", the rest reused") for line in evaluated), "the recipes of a model share its baseline"
    (suite, other) = ElementTree.parse(tmp_path / "reports" / "junit.xml").getroot()
    assert [case.get("name") for case in suite] == ["eight", "fp"] and other.get("failures") == "0"
    summary = (tmp_path / "reports" / "summary.md").read_text()
    assert "Release spring" in summary and summary.count("| 3 of 3 |") == 4
    assert "declares no licence" in summary

    again = cli("release", file, "--json")
    assert again.returncode == 0, again.stderr
    assert ": reused" in again.stderr and not any(f"{stage}: 0" in again.stderr for stage in ("quantize", "evaluate"))
    assert [unmeasured(item) for item in json.loads(again.stdout)["items"]] == list(map(unmeasured, outcome["items"]))


def unmeasured(item: dict[str, object]) -> dict[str, object]:
    return {**item, "seconds": None}


def test_one_bad_recipe_does_not_stop_the_others(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ends in a bug of ours, another does not pass, a target refuses what a third made."""
    file = write_release(tmp_path, models[:1], ("out/{recipe}",), "[eight.yaml, fp.yaml, strict.yaml]")
    strict = (tmp_path / "eight.yaml").read_text().replace("eight", "strict")
    (tmp_path / "strict.yaml").write_text(strict.replace("0.51", "0.999").replace("easy.yaml", "sure.yaml"))
    (tmp_path / "sure.yaml").write_text(EASY.replace("decide: point", "decide: certified").replace("easy", "sure"))

    def broken(plan: Plan, tokens: CalibrationTokens | None = None) -> Artifact:
        if plan.recipe.name == "fp":
            raise ZeroDivisionError("a bug, with hf_secretTokenOfSomebody in it")
        return quantize(plan, tokens)

    monkeypatch.setattr("pipelines.flow.run.quantize", broken)
    release = load_release(file)
    outcome, folder = run_release(release, prepare_release(release, tmp_path), tmp_path / "reports")
    eight, fp, strict_item = outcome.items
    assert (eight.verdict, eight.published) == ("PASS", (str(tmp_path / "out/eight"),))
    assert fp.error == "unexpected ZeroDivisionError: a bug, with (hidden) in it" and fp.exit_code == 1
    assert (strict_item.verdict, strict_item.exit_code) == ("INCONCLUSIVE", 4) and not strict_item.published
    assert outcome.exit_code == 1
    (suite,) = ElementTree.parse(folder / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("errors"), suite.get("failures")) == ("3", "1", "1")
    assert [[child.tag for child in case] for case in suite] == [
        ["system-out"], ["error", "system-out"], ["failure", "system-out"]
    ]  # fmt: skip
    for name in WRITTEN:
        text = (folder / name).read_text()
        assert "hf_secretTokenOfSomebody" not in text
        assert "ZeroDivisionError" in text or name == "release.json"


def test_a_killed_release_goes_on_where_it_was(models: tuple[Path, Path], tmp_path: Path) -> None:
    file = write_release(tmp_path, models[:1], ("out/{recipe}",), "[eight.yaml, fp.yaml]")
    release = load_release(file)
    (jobs,) = prepare_release(release, tmp_path)
    outcome, folder = run_release(release, [jobs[:1]], tmp_path / "reports")  # as if killed after the first
    assert [item.verdict for item in outcome.items] == ["PASS"]
    outcome, folder = run_release(release, prepare_release(release, tmp_path), tmp_path / "reports")
    assert [item.published for item in outcome.items] == [(str(tmp_path / f"out/{n}"),) for n in ("eight", "fp")]
    assert (
        Outcome.model_validate(
            {k: v for k, v in json.loads((folder / "release.json").read_text()).items() if k != "exit_code"}
        )
        == outcome
    )


def test_a_dry_run_computes_nothing(models: tuple[Path, Path], cli: Cli, tmp_path: Path) -> None:
    own = own_cache(tmp_path / "cache", cache_dir())
    file = write_release(tmp_path, models, ("out/{model}/{recipe}",), "[eight.yaml, fp.yaml]")
    done = cli("release", file, "--dry-run", QUANTGATE_CACHE=str(own))
    assert done.returncode == 0, done.stderr
    assert "nothing is computed" in done.stdout and done.stdout.count("unknown") == 5
    assert f"publishes  {tmp_path}/out/small/fp" in done.stdout
    assert not (tmp_path / "out").exists() and not (own / "stages" / "quantize").exists()

    one, *_ = forecast_release(prepare_release(load_release(file), tmp_path))
    assert one.bytes_after < one.bytes_before and one.memory > 0 and one.disk > one.bytes_after


def test_what_a_finished_run_took_is_what_the_next_is_expected_to(
    models: tuple[Path, Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_release(tmp_path, models, ("out/{model}/{recipe}",))
    release = load_release(file)
    jobs = prepare_release(release, tmp_path)
    run_release(release, jobs[:1], tmp_path / "reports")
    records = [json.loads(path.read_text()) for path in cache_dir().glob("runs/*/run.json")]
    suite = jobs[0][0].suite.model_dump(mode="json")
    alike = [record for record in records if record.get("manifest", {}).get("evaluation", {}).get("suite") == suite]
    assert alike
    tiny, small = json.loads(cli("release", file, "--dry-run", "--json").stdout)
    assert tiny["unknown"] == small["unknown"] == []
    with monkeypatch.context() as patch:
        patch.setattr(forecast, "finished_work", lambda *_: Finished())
        whole, other = forecast_release(jobs)
    assert 0 < other.seconds < whole.seconds, "in proportion to the parameters"
    assert small["seconds"] == pytest.approx(other.seconds), "nothing of it is finished"
    assert tiny["seconds"] == 0, "all that takes long is finished"
    assert re.search(r"tiny .* nothing ", cli("release", file, "--dry-run").stdout)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version: 1", "version: 2", ":1:1: version"),
        ("name: spring", "name: ../up", ":2:1: name"),
        ("eight.yaml", "../eight.yaml", "leads out of the release file's folder\n    copy it there"),
        ("eight.yaml", "/etc/hosts.yaml", "leads out of the release file's folder\n    copy it there"),
        ("eight.yaml", "nine.yaml", "there is no such recipe file"),
        ("out/{recipe}", "../{recipe}", "leads out of the release file's folder\n    give a path below the file; any"),
        ("out/{recipe}", "file:///etc/{recipe}", "leads out of the release file's folder\n"),
        ("out/{recipe}", "~/{recipe}", "leads out of the release file's folder\n"),
        ("out/{recipe}", "out/{modle}", "has the unknown placeholder {modle}"),
        ("out/{recipe}", "s3://key:password@bucket/x", "a target holds no credentials"),
        ("targets:", "target:", "target"),
        ("[eight.yaml]", "[]", "recipes"),
        ("[eight.yaml]", "[eight.yaml, eight.yaml]", "has eight.yaml twice"),
        ("recipes:", "recipes: &x\nothers:", "anchors, aliases and tags are not allowed"),
        ("[eight.yaml]", "!!python/object/apply:os.system ['true']", "anchors, aliases and tags are not allowed"),
    ],
)
def test_a_release_file_that_is_none(
    models: tuple[Path, Path], old: str, new: str, said: str, cli: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    file = write_release(folder, models[:1], ("out/{recipe}",))
    file.write_text(file.read_text().replace(old, new))
    done = cli("release", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and "password" not in done.stderr
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("eight.yaml", "nine.yaml", "4:11: {folder}/nine.yaml: there is no such recipe file"),
        ("[eight.yaml]", "[eight.yaml, fp9]", "4:23: fp9: there is no recipe of this name"),
        ("{model}", "no/../where", "3:10: no/../where: is neither a folder nor a hub id"),
        ("out/{recipe}", "out/{modle}", "5:11: {folder}/out/{modle}: has the unknown placeholder {modle}"),
        ("out/{recipe}", "gopher://host/{recipe}", "5:11: gopher://host/eight: 'gopher' is no kind of target"),
        ("out/{recipe}", "oci://host/{recipe}", "5:11: oci://host/eight: is not a target of the form oci://host/name"),
    ],
)
def test_what_a_release_file_names_wrongly_is_told_with_its_line(
    models: tuple[Path, Path], old: str, new: str, said: str, cli: Cli, tmp_path: Path
) -> None:
    file = write_release(tmp_path, models[:1], ("out/{recipe}",))
    file.write_text(file.read_text().replace(old.replace("{model}", str(models[0])), new))
    done = cli("release", file, "--dry-run")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {file}:{said.replace('{folder}', str(tmp_path))}"), done.stderr


def test_what_the_command_line_names_is_no_line_of_the_file(models: tuple[Path, Path], tmp_path: Path) -> None:
    release = load_release(write_release(tmp_path, models[:1], ("out/{recipe}",)))
    with pytest.raises(BadInput, match=r"^gopher://host: 'gopher' is no kind of target"):
        prepare_release(release, tmp_path, ("gopher://host",))


def test_links_of_a_release_do_not_lead_out_of_its_folder(models: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(BadInput, match="leads out of the release file's folder"):
        load_release(write_release(folder, models[:1], ("out/{recipe}",)))


def test_every_problem_of_every_model_at_once(models: tuple[Path, Path], tmp_path: Path) -> None:
    file = write_release(tmp_path, (models[0], tmp_path / "none"), ("out/x", "oci://host/x"), "[eight.yaml, gone]")
    release = load_release(file)
    with pytest.raises(BadInput) as error:
        prepare_release(release, tmp_path)
    text = str(error.value)
    for said in ("none: is neither a folder nor a hub id", "gone", "oci://host/x: is not a target of the form"):
        assert text.count(said) == 1, text

    file = write_release(tmp_path, models, ("out/here",))
    with pytest.raises(BadInput, match="would hold eight on tiny and eight on small") as error:
        prepare_release(load_release(file), tmp_path)
    assert len(error.value.problems) == 1


def test_models_of_one_name_are_released_from_two_files(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Names in the target would not tell them apart."""
    other = Path(shutil.copytree(models[1], tmp_path / models[0].name))
    release = load_release(write_release(tmp_path, (models[0], other), ("out/{model}/{recipe}",)))
    with pytest.raises(BadInput) as error:
        prepare_release(release, tmp_path)
    assert [problem.remedy for problem in error.value.problems] == [
        "release them from two files",
        "give it once, or release the models of this name from two files",
    ]


def test_a_pull_request_publishes_nothing_and_another_place_can_be_given(
    models: tuple[Path, Path], cli: Cli, tmp_path: Path
) -> None:
    file = write_release(tmp_path, models[:1], ("s3://releases/{recipe}",))
    judged = cli("release", file, "--no-publish", "--json")
    assert judged.returncode == 0, judged.stderr
    (item,) = json.loads(judged.stdout)["items"]
    assert (item["verdict"], item["targets"], item["published"]) == ("PASS", [], [])
    elsewhere = cli("release", file, "--to", tmp_path / "elsewhere" / "{release}")
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert files_of(tmp_path / "elsewhere" / "spring")


# Secrets


@pytest.mark.usefixtures("s3")
def test_no_secret_reaches_a_log_a_record_a_card_or_a_report(
    models: tuple[Path, Path], docker: Registry, cli: Cli, tmp_path: Path
) -> None:
    """Every secret that a release's environment may hold is planted; servers that refuse them say them back."""
    planted = {
        "HF_TOKEN": "hf_PlantedTokenOfTheHub01",
        "AWS_SECRET_ACCESS_KEY": "planted-secret-access-key",
        "AWS_SESSION_TOKEN": "planted-session-token",
        "QUANTGATE_SIGNING_PASSWORD": "planted-password-of-the-key",
        "GITHUB_TOKEN": "ghs_plantedTokenOfTheJob",
        "MY_API_KEY": "planted-key-of-another-tool",
    }
    targets = ("out/{recipe}", docker.target("tiny"), "s3://planted-secret-access-key/{recipe}")
    file = write_release(tmp_path, models[:1], targets)
    cache, out = own_cache(tmp_path / "cache", cache_dir()), tmp_path / "reports"
    done = cli("release", file, "--out", out, QUANTGATE_CACHE=str(cache), **planted)
    assert done.returncode == 1 and "(hidden)" in done.stderr, "the bucket that is called like the key was told of"
    where = [path for folder in (cache, out, tmp_path / "out") for path in folder.rglob("*") if path.is_file()]
    assert len(where) > 30
    said = {"standard output": done.stdout.encode(), "standard error": done.stderr.encode()}
    contents = {**said, **{str(path): path.read_bytes() for path in where if "wheels" not in path.parts}}
    secrets = {name: value for name, value in planted.items() if name != "AWS_SECRET_ACCESS_KEY"}
    for place, content in contents.items():
        assert not [name for name, value in secrets.items() if value.encode() in content], place
    assert not [place for place in said if planted["AWS_SECRET_ACCESS_KEY"].encode() in said[place]]
