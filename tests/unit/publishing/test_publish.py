"""Publishing to real servers, what happens when they fail, and what proves that an artifact is what was published."""

import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fsspec.registry import _registry as imported
from in_toto_attestation.v1.statement import Statement
from pyarrow import parquet

from pipelines import evaluate
from pipelines.core.cache import file_digest, folder_digests
from pipelines.core.errors import BadInput, QuantgateError
from pipelines.flow.run import run
from pipelines.gating.gate import gate
from pipelines.gating.verdict import Verdict
from pipelines.planning.stage import make_plan
from pipelines.publishing.bundle import Tampered, check
from pipelines.publishing.places.folder import Folder, FolderTarget
from pipelines.publishing.places.registry import OciTarget
from pipelines.publishing.places.targets import parse_target
from pipelines.publishing.signature import Signer, Trust
from pipelines.publishing.stage import check_published, make_bundle, publish, published, pull
from pipelines.quantization.artifact import Artifact
from pipelines.quantization.stage import quantize, read_artifact
from pipelines.recipe.load import load_recipe
from pipelines.recipe.recipe import Recipe
from pipelines.reporting.card import card
from pipelines.reporting.record import Manifest
from tests.conftest import EASY, Cli
from tests.helpers import hub_server, servers
from tests.helpers.servers import Registry, Store

TOKEN = "hf_thisIsTheTokenOfTheTests"
BIG = "model.safetensors"
FILES = {
    "README.md", "SHA256SUMS", "config.json", "generation_config.json", "documents.parquet", BIG, "provenance.json",
    "quantgate.json", "report.html", "tokenizer.json", "tokenizer_config.json", ".eval_results/quantgate.yaml",
    "serve/vllm.yaml", "serve/sglang.yaml", "serve/tensorrt-llm.yaml",
}  # fmt: skip


class Judged(NamedTuple):
    """An artifact that passed, and another."""

    artifact: Artifact
    verdict: Verdict
    recipe: Recipe
    model: Path
    other: Artifact
    other_verdict: Verdict


@pytest.fixture(scope="session")
def judged(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    suite = tmp_path_factory.mktemp("suite") / "easy.yaml"
    suite.write_text(EASY)
    made: list[Any] = []
    for name in ("fp8", "int8-weight-only"):
        settings = ["quantize.ignore=[lm_head]", f"gate.suite={suite}", "gate.retention=0.51"]
        recipe = load_recipe(name, settings)
        done = run(recipe, tiny, ())
        assert done.verdict.verdict == "PASS", done.verdict.reasons
        made += [quantize(make_plan(recipe, tiny)), done.verdict, recipe]
    return Judged(made[0], made[1], made[2], tiny, made[3], made[4])


@pytest.fixture
def hub(environment: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub_server.HubServer]:
    hub_server.plain_client(environment)
    with hub_server.serve(TOKEN) as found:
        environment.setenv("HF_TOKEN", TOKEN)
        environment.setattr("huggingface_hub.constants.ENDPOINT", found.url)
        template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
        environment.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        environment.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
        yield found


@pytest.fixture(params=["folder", "docker", "s3", "hub"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """One of each kind of place, where nothing is yet."""
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    match request.param:
        case "folder":
            return str(tmp_path / "out" / name)
        case "docker":
            return str(request.getfixturevalue("docker").target(name))
        case "s3":
            request.getfixturevalue("s3")
            return f"s3://releases/{name}"
        case _:
            request.getfixturevalue("hub")
            return f"hf://me/{name}@release"


def is_intact(judged: Judged) -> bool:
    return folder_digests(judged.artifact.checkpoint) == judged.artifact.files


# Every place


def test_a_place_gets_the_whole_bundle_once_and_gives_it_back(target: str, judged: Judged, tmp_path: Path) -> None:
    assert published(parse_target(target)) is None
    assert publish(judged.artifact, judged.verdict, target) == (target,)
    manifest = published(parse_target(target))
    assert manifest is not None and manifest.files == judged.artifact.files

    before = listing(target)
    publish(judged.artifact, judged.verdict, target)
    assert listing(target) == before, "the same bytes again are no new upload"

    checked = pull(target, tmp_path / "pulled")
    bundle = make_bundle(judged.artifact, judged.verdict)
    assert folder_digests(tmp_path / "pulled") == bundle.files and set(bundle.files) == FILES
    assert (checked.manifest, checked.files, checked.signature) == (manifest, len(FILES), "not signed")
    assert check_published(target) == checked
    assert not (tmp_path / ".pulled.partial").exists()
    with pytest.raises(BadInput, match="is there already"):
        pull(target, tmp_path / "pulled")


def listing(target: str) -> Any:
    """What changes when anything is written there."""
    place = parse_target(target).open()
    if target.startswith("hf://"):
        return place._api.repo_info(place._target.repository, revision="release").sha  # type: ignore[attr-defined]
    if target.startswith("oci://"):
        return place._manifest()  # type: ignore[attr-defined]
    if target.startswith("s3://"):
        fs, root = place._root  # type: ignore[attr-defined]
        return sorted((path, str(about["LastModified"])) for path, about in fs.find(root, detail=True).items())
    return [(path, path.stat().st_mtime_ns) for path in sorted(Path(target).rglob("*"))]


def test_what_another_published_is_left_alone(target: str, judged: Judged) -> None:
    publish(judged.other, judged.other_verdict, target)
    with pytest.raises(BadInput, match="holds another published artifact"):
        publish(judged.artifact, judged.verdict, target)
    with pytest.raises(BadInput, match="holds another artifact: tiny, recipe int8-weight-only") as early:
        run(judged.recipe, judged.model, target)
    assert len(early.value.problems) == 1
    there = published(parse_target(target))
    assert there is not None and there.files == judged.other.files and is_intact(judged)


def test_what_is_not_ours_is_left_alone(target: str, judged: Judged, request: pytest.FixtureRequest) -> None:
    foreign(target, request)
    before = listing(target)
    with pytest.raises(QuantgateError, match=r"is not an artifact of quantgate|holds other files already"):
        publish(judged.artifact, judged.verdict, target)
    assert listing(target) == before


def foreign(target: str, request: pytest.FixtureRequest) -> None:
    """Put something there that quantgate did not."""
    name = target.rstrip("/").rpartition("/")[2]
    match target.partition("://")[0]:
        case "oci":
            docker: Registry = request.getfixturevalue("docker")
            empty = b"{}"
            place: Any = parse_target(target).open()
            described = {"mediaType": "application/json", "digest": f"sha256:{hashlib.sha256(empty).hexdigest()}"}
            place._send({**described, "size": 2}, empty)
            described_config = {**described, "size": 2}
            manifest = {"schemaVersion": 2, "mediaType": servers.INDEX, "config": described_config, "layers": []}
            docker.put_manifest(name.partition(":")[0], manifest)
        case "s3":
            request.getfixturevalue("s3").put(f"{name}/notes.txt", b"mine")
        case "hf":
            place = parse_target(target).open()
            repository = place._target.repository
            place._api.create_repo(repository)
            place._api.create_branch(repository, branch="release")
            place._api.upload_file(
                path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=repository, revision="release"
            )
        case _:
            Path(target).mkdir(parents=True)
            (Path(target) / "notes.txt").write_text("mine")


def test_an_artifact_reaches_the_places_that_work(judged: Judged, docker: Registry, s3: Store, tmp_path: Path) -> None:
    dead = f"oci://127.0.0.1:{servers.free_port()}/models/tiny:v1"
    with pytest.raises(BadInput) as early:
        run(judged.recipe, judged.model, [tmp_path / "out", dead, "s3://no-such-bucket/x"])
    assert [problem.where for problem in early.value.problems] == [dead], "a place that cannot be asked is known early"
    assert not (tmp_path / "out").exists()

    places = [str(tmp_path / "{recipe}"), "s3://releases/{model}/{recipe}", "s3://no-such-bucket/x"]
    done = run(judged.recipe, judged.model, [*places, docker.target("{model}", "{recipe}")])
    assert done.published == (
        str(tmp_path / "fp8"), "s3://releases/tiny/fp8", f"oci://{docker.host}/models/tiny:fp8"
    )  # fmt: skip
    assert list(done.unpublished) == ["s3://no-such-bucket/x"]
    assert "bucket does not exist" in done.unpublished["s3://no-such-bucket/x"]
    record = json.loads(done.record.read_text())
    assert (record["published"], record["unpublished"]) == ([*done.published], done.unpublished)
    assert s3.names("tiny/fp8") == FILES
    bundles = [folder_digests(tmp_path / "fp8")]
    for number, target in enumerate(done.published[1:]):
        pull(target, tmp_path / f"pulled{number}")
        bundles.append(folder_digests(tmp_path / f"pulled{number}"))
    assert bundles[0] == bundles[1] == bundles[2], "every place gets the same bytes"


@pytest.mark.usefixtures("s3")
def test_a_failed_target_is_exit_code_1_though_the_gate_passed(cli: Cli, judged: Judged, tmp_path: Path) -> None:
    suite = f"gate.suite={judged.recipe.gate.suite}"
    settings = ("--set", suite, "--set", "gate.retention=0.51", "--set", "quantize.ignore=[lm_head]")
    targets = ("--to", tmp_path / "out", "--to", "s3://no-such-bucket/x")
    done = cli("run", "fp8", "--model", judged.model, *settings, *targets)
    assert done.returncode == 1, done.stderr
    assert f"published  {tmp_path}/out" in done.stdout and "error: s3://no-such-bucket/x: " in done.stderr


# What a reader sees


def test_the_hub_gets_one_private_commit(hub: hub_server.HubServer, judged: Judged) -> None:
    publish(judged.artifact, judged.verdict, "hf://me/tiny-fp8")
    assert hub.private("me/tiny-fp8")
    ours, first = hub.commits("me/tiny-fp8")
    assert first.title == "initial commit" and set(ours.files) == FILES | {".gitattributes"}
    assert (set(hub.files("me/tiny-fp8")) - {".gitattributes"}) == FILES


def test_a_registry_gets_a_model_as_modelpack_describes_it(docker: Registry, judged: Judged) -> None:
    publish(judged.artifact, judged.verdict, docker.target("tiny"))
    manifest = docker.manifest("tiny")
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    kinds = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]}
    assert set(kinds) == FILES
    assert kinds[BIG] == "application/vnd.cncf.model.weight.v1.raw"
    assert kinds["config.json"] == "application/vnd.cncf.model.weight.config.v1.raw"
    assert kinds["README.md"] == "application/vnd.cncf.model.doc.v1.raw"
    place: Any = parse_target(docker.target("tiny")).open()
    config = place._registry.get_blob(place._container, manifest["config"]["digest"]).json()
    assert config["config"] == {
        "architecture": "transformer", "format": "safetensors", "paramSize": "410.2K", "quantization": "rtn"
    }  # fmt: skip
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside", "a\\..\\outside"])
def test_what_a_registry_says_cannot_leave_the_folder(
    docker: Registry, judged: Judged, tmp_path: Path, name: str
) -> None:
    publish(judged.artifact, judged.verdict, docker.target("tiny"))
    manifest = docker.manifest("tiny")
    manifest["layers"][0]["annotations"]["org.cncf.model.filepath"] = name
    docker.put_manifest("tiny", manifest, "v2")
    with pytest.raises(QuantgateError, match="which would leave its folder"):
        pull(docker.target("tiny", "v2"), tmp_path / "deep" / "pulled")
    assert not list((tmp_path / "deep").iterdir()) and not (tmp_path / "outside").exists()


# Servers that fail: a clear error, nothing that a reader would take for an artifact, and the next attempt gets through


def breaks(judged: Judged, target: str, match: str) -> None:
    with pytest.raises(QuantgateError, match=re.compile(match, re.IGNORECASE)) as error:
        publish(judged.artifact, judged.verdict, target)
    assert str(error.value).startswith(target) and "\n    " in str(error.value), "the place, and what to do"
    for secret in (TOKEN, servers.PASSWORD, "secret-of-the-tests"):
        assert secret not in str(error.value)
    assert is_intact(judged)


@pytest.mark.parametrize(
    ("target", "remedy"),
    [
        ("oci://127.0.0.1:9/models/tiny:v1", "is the registry there, and did you `docker login`?"),
        ("hf://org/name", "is the hub in reach, and HF_TOKEN set?"),
        ("ftp://127.0.0.1:9/tiny", "are the credentials of that store set, and is it there? (docs/publish.md)"),
    ],
)
def test_a_place_that_cannot_be_reached_is_one_clear_error(
    target: str, remedy: str, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(QuantgateError) as error:
        pull(target, tmp_path / "pulled")
    assert str(error.value) == f"{target}: the connection failed: Connection refused\n    {remedy}"
    assert not list(tmp_path.iterdir())


def test_a_registry_whose_connection_breaks(docker: Registry, judged: Judged, tmp_path: Path) -> None:
    port = int(docker.host.rpartition(":")[2])
    with servers.breaking(port, 300_000) as broken:
        servers.log_in(tmp_path / "docker", f"127.0.0.1:{broken}")
        breaks(judged, f"oci://127.0.0.1:{broken}/models/tiny:v1", "connection|reset|aborted|broken pipe")
    assert docker.manifest("tiny") is None
    publish(judged.artifact, judged.verdict, docker.target("tiny"))
    assert docker.manifest("tiny") is not None


def test_a_registry_whose_disk_is_full(environment: pytest.MonkeyPatch, judged: Judged, tmp_path: Path) -> None:
    """Its process may write no file of more than 400 kB, which it meets as it would meet a full disk."""
    environment.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with servers.registry(tmp_path / "registry", largest_file=400_000) as full:
        servers.log_in(tmp_path / "docker", full.host)
        breaks(judged, full.target("tiny"), "refused blob|connection|broken pipe")
        assert full.manifest("tiny") is None


def test_a_registry_that_refuses_the_password(docker: Registry, judged: Judged, tmp_path: Path) -> None:
    servers.log_in(tmp_path / "docker", docker.host, "wrong-password")
    breaks(judged, docker.target("tiny"), "401|unauthorized")
    with pytest.raises(BadInput, match="401"):
        run(judged.recipe, judged.model, docker.target("tiny"))
    (tmp_path / "docker" / "config.json").unlink()
    breaks(judged, docker.target("tiny"), "401|unauthorized|authenticat")
    assert docker.manifest("tiny") is None


def test_a_registry_that_asks_for_tokens(
    environment: pytest.MonkeyPatch, judged: Judged, keys: "Keys", tmp_path: Path
) -> None:
    """As ghcr.io and Docker Hub do: a token for reading is no token for writing, and is asked for with the password."""
    environment.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with servers.token_registry(tmp_path / "registry", keys.root_key, keys.root) as (guarded, scopes):
        breaks(judged, guarded.target("tiny"), "401|token|auth")
        servers.log_in(tmp_path / "docker", guarded.host)
        publish(judged.artifact, judged.verdict, guarded.target("tiny"))
        asked = {(name, *sorted(actions.split(","))) for name, _, actions in (s.rpartition(":") for s in scopes)}
        assert {("repository:models/tiny", "pull"), ("repository:models/tiny", "pull", "push")} <= asked
        pull(guarded.target("tiny"), tmp_path / "pulled")
    assert folder_digests(tmp_path / "pulled") == make_bundle(judged.artifact, judged.verdict).files


def test_a_store_whose_connection_breaks(
    s3: Store, environment: pytest.MonkeyPatch, judged: Judged, tmp_path: Path
) -> None:
    with servers.breaking(int(s3.url.rpartition(":")[2]), 300_000) as broken:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{broken}")
        breaks(judged, "s3://releases/broken", "connect|closed|reset|broken pipe")
    environment.setenv("AWS_ENDPOINT_URL", s3.url)
    assert "SHA256SUMS" not in s3.names("broken")
    assert published(parse_target("s3://releases/broken")) is None
    with pytest.raises(BadInput, match="holds no published artifact"):
        pull("s3://releases/broken", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
    publish(judged.artifact, judged.verdict, "s3://releases/broken")
    assert s3.names("broken") == FILES


def test_a_store_keeps_what_arrived_and_what_is_somebody_elses(s3: Store, judged: Judged) -> None:
    bundle = make_bundle(judged.artifact, judged.verdict).path
    s3.put("half/config.json", (bundle / "config.json").read_bytes())
    publish(judged.artifact, judged.verdict, "s3://releases/half")
    assert s3.names("half") == FILES
    assert s3.is_ours("half/config.json") and not s3.is_ours("half/README.md")

    s3.put("theirs/config.json", b"{}")
    with pytest.raises(BadInput, match=r"holds other files already, like config\.json"):
        publish(judged.artifact, judged.verdict, "s3://releases/theirs")
    assert s3.names("theirs") == {"config.json"}


def test_a_store_that_refuses_the_key(s3: Store, judged: Judged) -> None:
    s3.ask_for_accounts(True)
    try:
        breaks(judged, "s3://releases/refused", "access key|forbidden|denied")
    finally:
        s3.ask_for_accounts(False)
    assert s3.names("refused") == set()


def test_a_hub_whose_connection_breaks(hub: hub_server.HubServer, judged: Judged) -> None:
    hub.fail_after_bytes = 300_000
    breaks(judged, "hf://me/tiny", "connect|disconnect|reset|broken pipe|error")
    assert len(hub.commits("me/tiny")) == 1, "no commit of half of it"
    hub.fail_after_bytes = None
    publish(judged.artifact, judged.verdict, "hf://me/tiny")
    assert set(hub.files("me/tiny")) - {".gitattributes"} == FILES


def test_a_hub_that_is_full(hub: hub_server.HubServer, judged: Judged) -> None:
    hub.full = True
    breaks(judged, "hf://me/tiny", "storage|full|quota|507|limit")
    assert len(hub.commits("me/tiny")) == 1


def test_a_hub_that_refuses_the_commit_has_the_large_files_already(hub: hub_server.HubServer, judged: Judged) -> None:
    hub.refuse_commit = True
    breaks(judged, "hf://me/tiny", ".")
    hub.refuse_commit = False
    before = sum(method == "PUT" for method, _ in hub.requests)
    publish(judged.artifact, judged.verdict, "hf://me/tiny")
    assert sum(method == "PUT" for method, _ in hub.requests) == before, "what arrived is not sent again"


@pytest.mark.usefixtures("hub")
def test_a_hub_that_refuses_the_token(environment: pytest.MonkeyPatch, judged: Judged) -> None:
    environment.setenv("HF_TOKEN", "hf_anotherTokenThatIsWrong")
    breaks(judged, "hf://me/tiny", "401|invalid|token")
    with pytest.raises(BadInput, match="401"):
        run(judged.recipe, judged.model, "hf://me/tiny")


def test_a_folder_on_a_full_disk(judged: Judged, tmp_path: Path) -> None:
    verdict = tmp_path / "verdict.json"
    verdict.write_text(judged.verdict.model_dump_json())
    make_bundle(judged.artifact, judged.verdict)
    program = [sys.executable, "-m", "pipelines.cli", "publish", str(judged.artifact.checkpoint)]
    command = [*servers.limited(400_000), *program, "--verdict", str(verdict), "--to", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/out: File too large\n    give another folder")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*")) and is_intact(judged)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """What a bundle is to a folder: files, one of them in a folder of its own."""
    for name in ("a.bin", "b/c.json", "SHA256SUMS", "quantgate.json"):
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name).write_text(name)
    return tmp_path / "plain"


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("link", "{to}: is a link, which cannot be replaced by the finished folder\n    give a folder inside it: --to"),
        ("dangling", "{to}: is a link that leads to no folder\n    remove the link, or give another folder"),
        ("loop", "{to}: is a link that leads to no folder\n    remove the link, or give another folder"),
        ("loop/x", "{to}: cannot be made: {here}/loop is a link that leads to no folder\n    give another folder"),
        ("dangling/x/y", "{to}: cannot be made: {here}/dangling is a link that leads to no folder\n    give another"),
        ("file/x", "{to}: cannot be made: {here}/file is not a folder\n    give another folder"),
        ("new/../..", "{to}: cannot be made: it leads up out of a folder that is not there\n    give another folder"),
        ("x" * 250, "{to}: cannot be made: File name too long\n    give another folder"),
        ("x" * 300, "{to}: cannot be made: File name too long\n    give another folder"),
        ("new/" + "x" * 300 + "/y", "{to}: cannot be made: File name too long\n    give another folder"),
        ("/proc/x", "{to}: cannot be made: "),
        ("/proc/x/y", "{to}: cannot be made: "),
    ],
    ids=lambda text: text[:20].replace("/", "-"),
)  # fmt: skip
def test_a_folder_that_cannot_be_made_is_known_before_the_work(to: str, said: str, plain: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "empty").mkdir(parents=True)
    (here / "file").touch()
    for name, leads in {"link": "empty", "dangling": "nowhere", "loop": "loop"}.items():
        (here / name).symlink_to(leads)
    before = sorted(here.rglob("*"))
    target = parse_target(here / to)
    with pytest.raises(BadInput) as early:
        published(target)
    assert str(early.value).startswith(said.format(to=target, here=here))
    with pytest.raises(QuantgateError) as late:  # had it come to be so during the run
        target.open().upload(plain)
    assert str(late.value).startswith(f"{target}: ") and "\n    " in str(late.value)
    assert not [path for path in here.rglob("*") if path.name.endswith(".partial")]
    if not to.startswith("new/"):
        assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("to", ["new", "empty", "link/new", "empty/../new", "a.b/c", "n\new", "x" * 200])
def test_a_folder_that_can_be_made(to: str, plain: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "empty").mkdir(parents=True)
    (here / "link").symlink_to("empty")
    (here / ".new.mine.partial").mkdir()
    place = Folder(here / to)
    assert place.read("quantgate.json") is None
    place.upload(plain)
    assert place.read("quantgate.json") == b"quantgate.json" and folder_digests(here / to) == folder_digests(plain)
    assert (here / to).stat().st_mode == plain.stat().st_mode, "others may read it as the umask says"
    assert list(here.rglob("*.partial")) == [here / ".new.mine.partial"], "what somebody else called so stays"


MOUNTS = """
mount -t tmpfs none "$1/disk" && mount --bind "$1/other" "$1/bound place" || exit 99
exec "$2" -c '
import sys; from pathlib import Path
from pipelines.publishing.places.folder import Folder; from pipelines.core.errors import *
for name in ("disk", "bound place"):
    for what in (lambda f: f.read("quantgate.json"), lambda f: f.upload(Path(sys.argv[2]))):
        try: what(Folder(Path(sys.argv[1]) / name))
        except QuantgateError as error: print(error.exit_code, error)
Folder(Path(sys.argv[1]) / "bound place" / "new").upload(Path(sys.argv[2]))
' "$1" "$3"
"""


def test_a_mount_point_is_no_target_but_a_folder_in_it_is(plain: Path, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for name in ("disk", "other", "bound place"):
        (here / name).mkdir(parents=True)
    command = ["unshare", "-rm", "sh", "-c", MOUNTS, "sh", str(here), sys.executable, str(plain)]
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 99 or done.stderr.startswith("unshare:"):
        pytest.skip("no mounts are allowed here")
    assert done.returncode == 0, done.stderr
    expected = ""
    for name in ("disk", "bound place"):
        to = here / name
        expected += f"2 {to}: is a mount point, which cannot be replaced by the finished folder\n"
        expected += f"    give a folder inside it: --to {to}/NAME\n"
        expected += f"1 {to}: Device or resource busy\n    give another folder with TO= or --to\n"
    assert done.stdout == expected
    assert folder_digests(here / "other" / "new") == folder_digests(plain)
    assert not list(here.rglob("*.partial"))


def test_two_publishers_with_caches_of_their_own(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins and ends while the first has copied and not yet renamed."""
    other = tmp_path / "other"
    shutil.copytree(plain, other)
    (other / "a.bin").write_text("other")
    target = tmp_path / "here" / "out"
    copy = Folder.copy

    def slowly(self: Folder, folder: Path, staging: Path) -> None:
        copy(self, folder, staging)
        monkeypatch.setattr(Folder, "copy", copy)
        Folder(target).upload(other)
        assert staging.parent.is_dir(), "what another process is filling is no leftover"

    monkeypatch.setattr(Folder, "copy", slowly)
    with pytest.raises(
        QuantgateError, match="out: something else was put there meanwhile, and is left as it is\n    pub"
    ):
        Folder(target).upload(plain)
    assert folder_digests(target) == folder_digests(other), "one of them, and whole"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_files_that_vanish_while_a_folder_is_filled(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest_and_lose(path: Path) -> str:
        if path.parent.name == "files" and path.name == "SHA256SUMS":
            (path.parent / "a.bin").unlink()
        return file_digest(path)

    monkeypatch.setattr("pipelines.publishing.places.folder.file_digest", digest_and_lose)
    with pytest.raises(QuantgateError, match="files were removed from"):
        Folder(tmp_path / "here" / "out").upload(plain)
    assert not list((tmp_path / "here").iterdir())


def test_what_a_killed_publisher_left_is_removed_by_the_next(plain: Path, tmp_path: Path) -> None:
    killed = (
        "import os, sys; from pathlib import Path; from pipelines.publishing.places.folder import Folder\n"
        "move = Path.replace\n"
        "Path.replace = lambda one, two: os.kill(os.getpid(), 9) if one.name == 'files' else move(one, two)\n"
        "Folder(Path(sys.argv[1])).upload(Path(sys.argv[2]))"
    )
    target = tmp_path / "here" / "out"
    for name in ("out", "out[1]"):
        subprocess.run([sys.executable, "-c", killed, str(target.with_name(name)), str(plain)], check=False)
    left = list(target.parent.iterdir())
    assert len(left) == 2 and all((path / "files" / "a.bin").is_file() for path in left)
    for name in ("out", "out[1]"):
        Folder(target.with_name(name)).upload(plain)
    assert {path.name for path in target.parent.iterdir()} == {"out", "out[1]"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://key:secret@bucket/x", "a target holds no credentials"),
        ("oci://user:secret@host/x:v1", "a target holds no credentials"),
        ("ftps3://bucket/x", "is no kind of target"),
        ("oci://host/x", "is not a target of the form oci://host/name:tag"),
        ("hf://only-a-name", "is not a target of the form hf://org/name"),
        ("s3://bucket/../other", "names no place"),
        ("out/{modle}", "has the unknown placeholder {modle}"),
    ],
)
def test_a_target_that_is_none(text: str, said: str) -> None:
    with pytest.raises(BadInput) as error:
        parse_target(text, model="m", recipe="r")
    assert said in str(error.value) and "secret" not in str(error.value)


def test_names_in_a_target() -> None:
    assert parse_target("oci://Host:5000/Models/{model}:{recipe}", model="Tiny", recipe="fp8") == OciTarget(
        host="host:5000", name="models/tiny", tag="fp8"
    )
    assert parse_target("file:///a%20b/{recipe}", recipe="fp8") == FolderTarget(path=Path("/a b/fp8"))
    assert str(parse_target("hf://me/x@main")) == "hf://me/x"


def test_a_store_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(imported, "s3", raising=False)
    remedy = r"    \.venv/bin/pip install '\.\[s3\]' in quantgate's folder"
    with pytest.raises(BadInput, match=rf"needs a package: .*[Ss]3.*\n{remedy}"):
        published(parse_target("s3://releases/x"))


# Proof


@pytest.fixture
def bundle(judged: Judged, tmp_path: Path) -> Path:
    """A published artifact that a test may change."""
    publish(judged.artifact, judged.verdict, tmp_path / "bundle")
    return tmp_path / "bundle"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def sums_anew(bundle: Path) -> None:
    """As an attacker would."""
    found = {name: value for name, value in folder_digests(bundle).items() if name not in ("SHA256SUMS", "model.sig")}
    (bundle / "SHA256SUMS").write_text("".join(f"{value}  {name}\n" for name, value in sorted(found.items())))


def other_bundle(judged: Judged, bundle: Path) -> Path:
    other = bundle.with_name("other")
    publish(judged.other, judged.other_verdict, other)
    return other


def change_a_byte(bundle: Path, _: Judged) -> None:
    flip(bundle / BIG)


def swap_the_card(bundle: Path, judged: Judged) -> None:
    shutil.copyfile(other_bundle(judged, bundle) / "README.md", bundle / "README.md")


def take_a_verdict_of_other_bytes(bundle: Path, judged: Judged) -> None:
    for name in ("quantgate.json", "README.md", "documents.parquet", "provenance.json"):
        shutil.copyfile(other_bundle(judged, bundle) / name, bundle / name)


def better_the_verdict(bundle: Path, _: Judged) -> None:
    record = json.loads((bundle / "quantgate.json").read_text())
    record["gate"]["retention"] = 1.25
    (bundle / "quantgate.json").write_text(json.dumps(record, indent=2) + "\n")


def better_the_expected_score(bundle: Path, _: Judged) -> None:
    record = json.loads((bundle / "quantgate.json").read_text())
    record["gate"]["expected"]["lower_bound"] = 1.25
    (bundle / "quantgate.json").write_text(json.dumps(record, indent=2) + "\n")


def better_the_probabilities(bundle: Path, _: Judged) -> None:
    rows = parquet.read_table(bundle / "documents.parquet")
    better = rows.column("artifact_logprobs").to_pylist()
    better[0][rows.column("right").to_pylist()[0][0]] = 0.0
    changed = rows.set_column(rows.schema.get_field_index("artifact_logprobs"), "artifact_logprobs", [better])
    parquet.write_table(changed, bundle / "documents.parquet")


def better_the_answers(bundle: Path, _: Judged) -> None:
    rows = parquet.read_table(bundle / "documents.parquet")
    worse = rows.column("baseline_score").to_pylist()
    worse[worse.index(1.0)] = 0.0
    changed = rows.set_column(rows.schema.get_field_index("baseline_score"), "baseline_score", [worse])
    parquet.write_table(changed, bundle / "documents.parquet")


def change_the_source(bundle: Path, _: Judged) -> None:
    said = json.loads((bundle / "provenance.json").read_text())
    said["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["sha256"] = "0" * 64
    (bundle / "provenance.json").write_text(json.dumps(said))


def remove_a_file(bundle: Path, _: Judged) -> None:
    (bundle / "generation_config.json").unlink()


def add_a_file(bundle: Path, _: Judged) -> None:
    (bundle / "modeling_tiny.py").write_text("import os")


Tampering = Callable[[Path, Judged], None]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize(
    ("tampering", "said"),
    [
        (change_a_byte, "the verdict in quantgate.json is of other files"),
        (swap_the_card, "README.md is the card of another artifact"),
        (take_a_verdict_of_other_bytes, "the verdict in quantgate.json is of other files"),
        (better_the_verdict, "the verdict's retention is not what documents.parquet gives"),
        (better_the_answers, "the verdict's retention is not what documents.parquet gives"),
        (better_the_expected_score, "the verdict's expected is not what documents.parquet gives"),
        (better_the_probabilities, "the verdict's expected is not what documents.parquet gives"),
        (change_the_source, "provenance.json is about another recipe, source"),
        (remove_a_file, "the verdict in quantgate.json is of other files"),
        (add_a_file, "the verdict in quantgate.json is of other files"),
    ],
)
def test_tampering_is_found(
    tampering: Tampering, said: str, anew: bool, signed: bool, judged: Judged, keys: "Keys", tmp_path: Path
) -> None:
    """Checksums show it; what contradicts itself does even with checksums made `anew`, and a signature shows all."""
    bundle = tmp_path / "bundle"
    publish(judged.artifact, judged.verdict, bundle, signer=Signer(key=keys.private) if signed else None)
    trust = Trust(key=keys.public) if signed else None
    check(bundle, trust)
    tampering(bundle, judged)
    if anew:
        sums_anew(bundle)
    with pytest.raises(Tampered) as error:
        check(bundle, trust)
    assert said in str(error.value)
    assert (
        anew or any(f" was {what}" in str(error.value) for what in ("changed", "added")) or tampering is remove_a_file
    )
    assert ("its signature does not hold" in str(error.value)) == signed


def test_pull_keeps_nothing_that_was_tampered_with(bundle: Path, cli: Cli, tmp_path: Path) -> None:
    good = cli("verify", bundle)
    assert good.returncode == 0 and "every digest as published" in good.stdout, good.stderr
    assert "Judged again from its documents: the same." in good.stdout and "not signed" in good.stdout
    flip(bundle / BIG)
    for command in (("verify", bundle), ("pull", bundle, tmp_path / "pulled")):
        done = cli(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{BIG} was changed" in done.stderr
    assert not (tmp_path / "pulled").exists()


def test_vllm_loads_what_is_in_a_folder(cli: Cli) -> None:
    done = cli("verify", "s3://releases/x", "--runtime", "vllm")
    assert done.returncode == 2 and "is no folder, and vLLM loads nothing else\n    quantgate pull it" in done.stderr


class Keys(NamedTuple):
    """A key pair; another one with a certificate, below another, below a root."""

    private: Path
    public: Path
    leaf_key: Path
    leaf: Path
    middle: Path
    root: Path
    root_key: Any
    stranger: Path


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("keys")
    made = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("own", "root", "middle", "leaf", "stranger")}

    def private(name: str, password: bytes | None = None) -> Path:
        cipher = pem.BestAvailableEncryption(password) if password else pem.NoEncryption()
        path = folder / f"{name}.key"
        path.write_bytes(made[name].private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, cipher))
        return path

    def public(name: str) -> Path:
        path = folder / f"{name}.pub"
        path.write_bytes(made[name].public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))
        return path

    def certificate(name: str, issuer: str) -> Path:
        now = datetime.datetime.now(datetime.UTC)
        authority = name != "leaf"
        usage = x509.KeyUsage(
            digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
            decipher_only=False,
        )  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(made[name].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(made[name].public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(made[issuer].public_key()), critical=False
            )
        )
        if not authority:
            builder = builder.add_extension(
                x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CODE_SIGNING]), critical=False
            )
        path = folder / f"{name}.crt"
        path.write_bytes(builder.sign(made[issuer], hashes.SHA256()).public_bytes(pem.Encoding.PEM))
        return path

    return Keys(
        private("own"), public("own"), private("leaf"), certificate("leaf", "middle"), certificate("middle", "root"),
        certificate("root", "root"), made["root"], public("stranger"),
    )  # fmt: skip


def test_a_signature_says_who_made_it(judged: Judged, keys: Keys, cli: Cli, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    publish(judged.artifact, judged.verdict, bundle, signer=Signer(key=keys.private))
    assert check(bundle).signature == "signed, by whom was not asked"
    assert check(bundle, Trust(key=keys.public)).signature == "signed by whom you trust"
    assert cli("verify", bundle, "--trust-key", keys.public).returncode == 0
    stranger = cli("verify", bundle, "--trust-key", keys.stranger)
    assert stranger.returncode == 1 and "its signature does not hold" in stranger.stderr
    (bundle / "model.sig").unlink()
    absent = cli("verify", bundle, "--trust-key", keys.public.with_name("absent.pub"))
    assert absent.returncode == 2 and "absent.pub: is no file\n    give the PEM file" in absent.stderr
    unsigned = cli("verify", bundle, "--trust-key", keys.public)
    assert unsigned.returncode == 1 and "it is not signed: there is no model.sig" in unsigned.stderr


def test_a_certificate_says_who_vouches_for_the_key(judged: Judged, keys: Keys, tmp_path: Path) -> None:
    signer = Signer(key=keys.leaf_key, certificate=keys.leaf, chain=(keys.middle,))
    publish(judged.artifact, judged.verdict, tmp_path / "bundle", signer=signer)
    checked = check(tmp_path / "bundle", Trust(roots=(keys.root,)))
    assert checked.signature == "signed by whom you trust"
    with pytest.raises(Tampered, match="its signature does not hold"):
        check(tmp_path / "bundle", Trust(roots=(keys.leaf,)))


def test_a_key_that_cannot_sign_is_known_before_the_work(judged: Judged, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")
    with pytest.raises(BadInput, match="is no private key in PEM") as error:
        run(judged.recipe, judged.model, tmp_path / "out", signer=Signer(key=tmp_path / "key.pem"))
    assert "nonsense" not in str(error.value)
    with pytest.raises(BadInput, match="is not there, and was to sign with"):
        run(judged.recipe, judged.model, tmp_path / "out", signer=Signer(key=tmp_path / "none.pem"))


def test_the_statement_is_one_of_in_toto_and_binds_everything(bundle: Path, judged: Judged) -> None:
    said = json.loads((bundle / "provenance.json").read_text())
    Statement.copy_from_pb(_parsed(said)).validate()
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in said["subject"]}
    assert judged.artifact.files.items() <= subjects.items()
    definition = said["predicate"]["buildDefinition"]
    sources = {one["name"]: one["digest"] for one in definition["resolvedDependencies"]}
    for name, value in folder_digests(judged.model).items():
        assert sources[f"model/{name}"] == {"sha256": value}
    assert definition["externalParameters"]["recipe"]["name"] == "fp8"
    (record,) = said["predicate"]["runDetails"]["byproducts"]
    assert record["annotations"]["verdict"] == "PASS" and record["digest"]["sha256"] == subjects["quantgate.json"]
    both = {
        name: kept and kept.retention
        for name, kept in (("accuracy", judged.verdict.accuracy), ("expected", judged.verdict.expected))
    }
    assert {name: record["annotations"][name]["retention"] for name in both} == both


def _parsed(said: dict[str, Any]) -> Any:
    from google.protobuf.json_format import ParseDict
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    return ParseDict(said, Message())


def test_results_are_in_the_hubs_own_forms(bundle: Path) -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub._eval_results import parse_eval_result_entries
    from yaml import safe_load

    result, expected = ModelCard.load(bundle / "README.md").data.eval_results
    record = json.loads((bundle / "quantgate.json").read_text())
    assert (result.dataset_type, result.metric_type) == ("allenai/sciq", "acc")
    assert result.metric_value == record["gate"]["tasks"][0]["candidate"]
    assert (expected.dataset_type, expected.metric_type) == ("allenai/sciq", "expected_score")
    assert expected.metric_value == record["gate"]["tasks"][0]["expected"]["candidate"]
    (entry,) = parse_eval_result_entries(safe_load((bundle / ".eval_results" / "quantgate.yaml").read_text()))
    assert (entry.dataset_id, entry.value) == ("allenai/sciq", result.metric_value)
    for score, kept in (("accuracy", record["gate"]["accuracy"]), ("expected score", record["gate"]["expected"])):
        assert f"{score} kept {kept['retention']:.2%} (" in str(entry.notes)


def test_nothing_that_a_card_tells_is_markup(bundle: Path) -> None:
    record = Manifest.model_validate_json((bundle / "quantgate.json").read_text())
    recipe = record.recipe.model_copy(update={"summary": "x\n\n## Verdict\n\n**PASS** <b>"})
    text = card(record.model_copy(update={"recipe": recipe}), ("[a](b).py",))
    assert text.count("\n## Verdict") == 1 and "**PASS** <b>" not in text and "[a](b)" not in text


def test_the_verdict_can_be_given_again_from_the_table(bundle: Path, judged: Judged) -> None:
    table = parquet.read_table(bundle / "documents.parquet")
    assert (
        table.num_rows == 48
        and parquet.ParquetFile(bundle / "documents.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    )
    baseline, candidate, *_ = judged.verdict.evaluations
    assert gate(baseline, candidate, judged.recipe.gate).retention == judged.verdict.retention


# The same bytes again

OLD_PROCESSOR = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
"""Makes PyTorch compute as on a processor without AVX-512 and AMX."""


def test_a_verdict_of_the_gate_alone_is_published_and_found_again(judged: Judged, tmp_path: Path) -> None:
    """It knows no distance on held-out text, which only a run passes on."""
    suite = judged.recipe.gate.suite
    baseline, candidate = (evaluate(model, suite, "cpu") for model in (judged.model, judged.artifact))
    verdict = gate(baseline, candidate, judged.recipe.gate)
    assert verdict.verdict == "PASS" and len(verdict.measures) < len(judged.verdict.measures)
    publish(judged.artifact, verdict, tmp_path / "out")
    assert check_published(str(tmp_path / "out")).manifest.gate.measures == verdict.measures
    with pytest.raises(BadInput, match=r"out: is published already\n    copy it"):
        read_artifact(tmp_path / "out")
    foreign = verdict.model_copy(update={"baseline_digest": "0" * 32})
    with pytest.raises(BadInput, match=r"baseline is another model than .*, which it was made of"):
        publish(judged.artifact, foreign, tmp_path / "other")
    (tmp_path / "out" / "provenance.json").write_text("[" * 100_000)
    with pytest.raises(Tampered, match=r"there is no provenance\.json that can be read"):
        check(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "settings"),
    [("fp8", ()), ("int4-gptq", ("calibrate.samples=4", "calibrate.seq_len=64", "quantize.group_size=16"))],
)
def test_two_runs_give_the_same_bytes(name: str, settings: tuple[str, ...], tiny: Path, tmp_path: Path) -> None:
    """In two caches and two processes; where nothing is calibrated, the other is a slower processor's."""
    settings = ("quantize.ignore=[lm_head]", *settings)
    here = quantize(make_plan(load_recipe(name, settings), tiny)).checkpoint
    wheels = (Path(os.environ["QUANTGATE_CACHE"]) / "wheels").resolve()
    cache = tmp_path / "other"
    cache.mkdir()
    (cache / "wheels").symlink_to(wheels)
    program = (
        "import sys; from pipelines import load_recipe, make_plan, quantize;"
        "print(quantize(make_plan(load_recipe(sys.argv[2], sys.argv[3:]), sys.argv[1])).checkpoint)"
    )
    slower = {} if load_recipe(name).calibrate else OLD_PROCESSOR
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny), name, *settings],
        env={**os.environ, **slower, "QUANTGATE_CACHE": str(cache)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    there = Path(done.stdout.split()[-1])
    assert here != there and BIG in folder_digests(here)
    assert folder_digests(here) == folder_digests(there)
