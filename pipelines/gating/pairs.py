"""Baseline and candidate, document by document: pairs, and why documents are none."""

from collections.abc import Sequence

from pipelines.core.errors import Problem
from pipelines.evaluation.scores import Document

FEWEST_INDEPENDENT = 2
"""Smallest number of independent documents of a task: a variance takes two."""
TOO_FEW = "has fewer than two independent documents"
"""Words for a task that has fewer."""
RAISE_LIMIT = "raise its limit, or use another suite"
"""Remedy against too few documents of a task that has a limit."""

Pairs = Sequence[tuple[Document, Document]]
"""Baseline and candidate, document by document."""


def pairing_problems(task: str, baseline: Sequence[Document], candidate: Sequence[Document]) -> list[Problem]:
    """Return why the documents of a task's two sides are no pairs, or too few for a variance."""
    problems = []
    for side, documents in (("baseline", baseline), ("candidate", candidate)):
        if len({d.id for d in documents}) < len(documents):
            problems.append(Problem(f"task {task}", f"the {side} has documents twice", "evaluate it again"))
        if any(not 0 <= d.score <= 1 for d in documents):
            problems.append(Problem(f"task {task}", f"the {side} has scores outside [0, 1]", "choose another metric"))
        elif not all(d.is_finite for d in documents):
            what = f"the {side} has log-probabilities that are not numbers"
            problems.append(
                Problem(f"task {task}", what, "compute in float32, or look for what is wrong with the model")
            )
        if not all(d.is_whole for d in documents):
            what = f"the {side} has answers whose lengths, right ones or chance cannot be"
            problems.append(Problem(f"task {task}", what, "evaluate it again, or choose another metric"))
    if unmatched := len({_identity(d) for d in baseline} ^ {_identity(d) for d in candidate}):
        what = f"{unmatched} documents, prompts or answers to choose from are on one side only"
        problems.append(Problem(f"task {task}", what, "evaluate both models on the same documents"))
    elif len({d.cluster for d in baseline}) < FEWEST_INDEPENDENT:
        problems.append(Problem(f"task {task}", TOO_FEW, RAISE_LIMIT))
    return problems


def pair_documents(baseline: Sequence[Document], candidate: Sequence[Document]) -> Pairs:
    """Return the documents of both sides, paired by position and content; `pairing_problems` has found none missing.

    A data set may hold the same document twice: its position tells the two apart, and their common cluster keeps
    them from counting as independent.
    """
    theirs = {_identity(document): document for document in candidate}
    return [(document, theirs[_identity(document)]) for document in baseline]


def _identity(document: Document) -> tuple[object, ...]:
    """Return what tells a document from others and from the same position in other data, and how it was scored: what
    both sides must have alike."""
    hashes = document.doc_hash, document.prompt_hash, document.target_hash
    offered = len(document.logprobs), document.lengths, document.right
    return document.id, *hashes, document.cluster, document.chance, *offered, document.times
