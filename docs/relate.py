"""Measures how the expected score relates to accuracy: `python -m docs.relate [ARTIFACT …]` writes the figures
relation.json, .md and .svg of docs/figures.

It makes artifacts of the default model, and evaluates each and the model itself. An artifact is `rtn-BITS` (weights of
linear layers rounded to nearest, asymmetric, in groups of 64, to 2^BITS levels) or `noise-SHARE` (normal noise, of that
share of each row's root mean square, added to them). Rows that are in the file already are kept, so that artifacts can
be added one by one; without arguments all that are missing are measured. `--limit N` takes N documents of each task,
`--dtype` what both sides compute in; `--draw` only draws.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from docs.markdown import table
from pipelines.checkpoint.headers import Checkpoint
from pipelines.checkpoint.load import load_model
from pipelines.core.device import Dtype
from pipelines.evaluation.scores import Scores
from pipelines.evaluation.stage import evaluate
from pipelines.gating.decision import sides
from pipelines.gating.pairs import Pairs, pair_documents
from pipelines.gating.statistic import RIGHT_OR_WRONG, combine, paired_moments
from pipelines.gating.weighed import Weighed, weigh_both
from pipelines.recipe.load import load_suite
from pipelines.recipe.suite import ScoreKind, Suite
from pipelines.reporting import drawing

FIGURES = Path(__file__).parent / "figures"
ARTIFACTS = (
    *(f"rtn-{bits}" for bits in (2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 10, 12)),
    *(f"noise-{share}" for share in (0.02, 0.04, 0.06, 0.1)),
)
"""Artifacts from 2.5 to 12 bits, and at several levels of noise."""
GROUP = 64
SIZES = (500, 1000, 3500)
"""Numbers of documents on which it is asked whether an artifact is certified."""
DRAWS = 300
"""Number of random samples of documents of each size."""
TARGET, BELOW = 0.99, 0.985
LARGEST = 0.2
"""Largest loss of the expected score that the line is fitted to: what is ruined says nothing of what passes."""
KINDS: tuple[ScoreKind, ...] = ("accuracy", "expected")


class Row(NamedTuple):
    """What one artifact keeps on all documents, and how often it is certified on fewer."""

    artifact: str
    documents: int
    kept: dict[str, float]
    """Statistic → retention."""
    error: dict[str, float]
    """Statistic → its standard error."""
    certified: dict[str, float]
    """Number of documents → share of samples on which the expected score certifies."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the rows, the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", default=list(ARTIFACTS))
    parser.add_argument("--limit", type=int, help="documents of each task; all unless given")
    parser.add_argument("--dtype", default="float32", choices=get_args(Dtype))
    parser.add_argument("--draw", action="store_true", help="only draw what was measured")
    options = parser.parse_args(arguments)
    suite = load_suite("core")
    suite = suite.model_copy(
        update={"tasks": tuple(task.model_copy(update={"limit": options.limit}) for task in suite.tasks)}
    )
    about: dict[str, Any] = {"limit": options.limit, "dtype": options.dtype}
    file = FIGURES / "relation.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"about": about, "rows": []}
    rows = [Row(**row) for row in known["rows"]]
    if not options.draw:
        if known["about"] != about:
            raise SystemExit(f"{file} was measured with {known['about']}: remove it first")
        for row in measured(
            [name for name in options.artifacts if name not in {row.artifact for row in rows}], suite, options.dtype
        ):
            rows.append(row)
            file.write_text(json.dumps({"about": about, "rows": [row._asdict() for row in rows]}, indent=1) + "\n")
            print(row, flush=True)
    (FIGURES / "relation.md").write_text(told(rows, known["about"]), encoding="utf-8")
    (FIGURES / "relation.svg").write_text(drawn(rows), encoding="utf-8")


def measured(artifacts: Sequence[str], suite: Suite, dtype: Dtype) -> Iterator[Row]:
    """Yield the row of each artifact."""
    source = load_model(None)
    for artifact in artifacts:
        with tempfile.TemporaryDirectory() as scratch:
            made = make(artifact, source, Path(scratch) / artifact)
            theirs = evaluate(made, suite, "cpu", dtype=dtype).scores()
        yield relate(artifact, evaluate(source, suite, "cpu", dtype=dtype).scores(), theirs, suite)


def make(artifact: str, source: Checkpoint, folder: Path) -> Path:
    """Write the artifact of that name as a checkpoint in float32, and return its folder."""
    how, _, amount = artifact.partition("-")
    shutil.copytree(source.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": "float32", "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(1)
    for file in folder.glob("*.safetensors"):
        weights = {name: weight.float() for name, weight in load_file(file).items()}
        for name, weight in weights.items():
            if name.endswith("proj.weight"):
                weights[name] = (
                    rounded(weight, float(amount)) if how == "rtn" else noisy(weight, float(amount), generator)
                )
        save_file(weights, file, metadata={"format": "pt"})
    return folder


def rounded(weight: torch.Tensor, bits: float) -> torch.Tensor:
    """Return `weight` (rows, columns), each group of 64 columns rounded to 2^bits levels from its least to its most."""
    groups = weight.reshape(len(weight), -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / (round(2**bits) - 1)
    return (((groups - low) / step).round() * step + low).flatten(1)


def noisy(weight: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Return `weight` (rows, columns) with normal noise, of a share of each row's root mean square."""
    size = weight.square().mean(1, keepdim=True).sqrt()
    return weight + share * size * torch.randn(weight.shape, generator=generator)


def relate(artifact: str, baseline: Scores, candidate: Scores, suite: Suite) -> Row:
    """Return the row of an artifact, by its scores and its baseline's on all documents."""
    pairs = {task: pair_documents(baseline[task], documents) for task, documents in candidate.items()}
    both = weigh_both(pairs, suite, suite.policy).found
    generator = np.random.default_rng(1)
    return Row(
        artifact,
        sum(map(len, pairs.values())),
        {kind: both[kind].overall.retention() or 0.0 for kind in KINDS},
        {kind: both[kind].overall.error(TARGET) for kind in KINDS},
        {
            str(size): float(np.mean([certifies(both, sample(pairs, size, generator), suite) for _ in range(DRAWS)]))
            for size in SIZES
        },
    )


def sample(pairs: Mapping[str, Pairs], size: int, generator: np.random.Generator) -> dict[str, list[int]]:
    """Return the places of `size` random documents, the same share of each task's, drawn with replacement: what was
    evaluated stands for all documents that there could be."""
    whole = sum(map(len, pairs.values()))
    return {
        task: generator.integers(0, len(documents), max(2, round(size * len(documents) / whole))).tolist()
        for task, documents in pairs.items()
    }


def certifies(both: Mapping[ScoreKind, Weighed], places: Mapping[str, Sequence[int]], suite: Suite) -> bool:
    """Tell whether the documents at `places` show that the expected score is above the target, and do not show that
    accuracy is below."""
    policy = suite.policy.model_copy(update={"statistic": "expected"})
    overall = {}
    for kind, weighed in both.items():
        moments = {
            task: paired_moments(
                [weighed.scored[task][place]._replace(cluster=str(number)) for number, place in enumerate(chosen)],
                policy,
                RIGHT_OR_WRONG if kind == "accuracy" else None,
            )
            for task, chosen in places.items()
        }
        overall[kind] = combine(moments, suite.shares)
    shown = sides(overall, policy, TARGET)
    return shown["expected"] == "above" and shown["accuracy"] != "below"


def slope(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the loss of accuracy for each loss of the expected score, and how far rows scatter around that line, which
    is fitted with the weights of the accuracy's error: it has the larger by far."""
    rows = [row for row in rows if row.kept["expected"] > 1 - LARGEST]
    x = np.array([1 - row.kept["expected"] for row in rows])
    y = np.array([1 - row.kept["accuracy"] for row in rows])
    weight = 1 / np.array([row.error["accuracy"] for row in rows]) ** 2
    found = float((weight * x * y).sum() / (weight * x * x).sum())
    return found, float(np.sqrt(np.mean((y - found * x) ** 2)))


def told(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """Return the rows as Markdown."""
    fit, scatter = slope(rows)
    head = ["artifact", "accuracy kept", "expected score kept", *(f"certified on {size:,}" for size in SIZES)]
    body = [
        [row.artifact, *(f"{row.kept[kind]:.2%} ± {row.error[kind]:.2%}" for kind in KINDS)]
        + [f"{row.certified[str(size)]:.1%}" for size in SIZES]
        for row in sorted(rows, key=lambda row: row.kept["expected"])
    ]
    summary = [
        [f"below {limit:.1%}", str(len(some))]
        + ([f"{np.mean([row.certified[str(size)] for row in some]):.1%}" for size in SIZES] if some else ["–"] * 3)
        for limit in (TARGET, BELOW)
        for some in [[row for row in rows if row.kept["accuracy"] < limit]]
    ]
    return (
        "\n\n".join(
            [
                f"Made by `python -m docs.relate`: suite core, {about['limit'] or 'all'} documents of a task at most, "
                f"{about['dtype']}, {DRAWS} samples of each size.",
                f"Loss of accuracy for each loss of the expected score: {fit:.2f}, with a scatter of {scatter:.2%}.",
                table(head, body),
                table(["accuracy kept on all", "artifacts", *(f"certified on {size:,}" for size in SIZES)], summary),
            ]
        )
        + "\n"
    )


def drawn(rows: Sequence[Row]) -> str:
    """Return the figure: loss of accuracy against loss of the expected score, with the line."""
    fit, _ = slope(rows)
    with drawing.styled():
        whole = drawing.figure(720, 420)
        plot = drawing.axes(whole, 70, 20, 620, 340)
        x = np.array([1 - row.kept["expected"] for row in rows])
        y = np.array([1 - row.kept["accuracy"] for row in rows])
        plot.errorbar(
            x, y, [row.error["accuracy"] for row in rows], [row.error["expected"] for row in rows], "o", linewidth=1
        )
        ends = np.array([min(0.0, x.min()), x.max()])
        plot.plot(ends, ends, "--", linewidth=1)
        plot.plot(ends, fit * ends, "-")
        plot.set(xlabel="loss of the expected score", ylabel="loss of accuracy")
        title = "What artifacts lose by either statistic"
        said = " ".join(
            f"{row.artifact}: {1 - row.kept['expected']:.1%}, {1 - row.kept['accuracy']:.1%}." for row in rows
        )
        return str(drawing.markup(whole, title, f"Loss of the expected score, loss of accuracy. {said}", True))


if __name__ == "__main__":
    main()
