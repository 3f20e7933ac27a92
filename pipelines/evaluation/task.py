"""One of lm-eval's tasks: its documents, what is asked of each, which answers are right, and what an answer scores."""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from pipelines.core.cache import digest
from pipelines.core.errors import BadInput, bad_input, brief
from pipelines.evaluation.patches import patched
from pipelines.evaluation.rows import data_digest
from pipelines.evaluation.scores import Document
from pipelines.recipe.suite import SuiteTask, Task

SEED = 1234
"""Seed of the examples that a prompt begins with, and of what is drawn."""
NOT_ASKED = {"metric", "documents", "tokens", "noise", "dataset"}
"""Fields of a task that change nothing of what a model is asked."""
NOT_FOR_US = {
    "MULTIMODAL": "shows pictures or plays sounds, and models are asked in text here",
    "UNSAFE_CODE": "runs the code that a model writes, which is not done here",
}
"""Mark by which lm-eval tells a kind of tasks that is refused → the reason."""

CHOOSES: dict[str, Callable[[str], int] | None] = {
    "acc": None,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
"""Metric that takes the likeliest answer for the model's → what its log-probability is divided by, if by anything."""

Doc = Mapping[str, Any]
"""Document as lm-eval has it: column → value."""
Sample = Mapping[str, Any]
"""Log that lm-eval keeps of one document's answers: what was asked, what was answered, and each metric's score."""


class NoAnswer(ValueError):
    """Among a document's choices is no right one."""


class Answers(NamedTuple):
    """The answers of a model to some of a task's documents."""

    samples: list[Sample]
    """Log of each document's answers, in the order they were asked in."""
    shots: int
    """Number of examples before each question."""
    version: str
    """Version of lm-eval's definition of the task."""


@dataclasses.dataclass(frozen=True)
class LmEvalTask:
    """One of lm-eval's tasks, with its documents. lm-eval's own object stays as it was loaded: what is asked is asked
    of a copy, which has the documents, the examples and the settings for that."""

    task: Task
    """Our addition to lm-eval's definition."""
    loaded: Any
    """Task object of lm-eval."""
    documents: tuple[Doc, ...]
    """All documents of the split that is evaluated; `datasets` would decode every row whenever one is asked for."""

    @property
    def split(self) -> str:
        """Name of the split that is evaluated."""
        return str(self.loaded.config.test_split or self.loaded.config.validation_split)

    @property
    def content(self) -> str:
        """Digest of all documents."""
        return digest(self.documents)

    @property
    def refused(self) -> str | None:
        """Reason why such tasks are not asked here; None where they are."""
        return next((why for mark, why in NOT_FOR_US.items() if getattr(self.loaded, mark, False)), None)

    @property
    def written(self) -> bool:
        """Whether a model writes the answers rather than choose among given ones."""
        return bool(self.loaded.OUTPUT_TYPE == "generate_until")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that score each document; empty where the task's own code decides."""
        scored = self.loaded.OUTPUT_TYPE in ("multiple_choice", "loglikelihood") and self._is_plain
        return tuple(self.loaded.aggregation()) if scored else ()

    @property
    def _is_plain(self) -> bool:
        """Whether lm-eval's own code scores the answers, and not the task's."""
        from lm_eval.api.task import ConfigurableTask

        return type(self.loaded) is ConfigurableTask and self.loaded.config.process_results is None

    def cluster(self, doc: Doc) -> str:
        """Return what is equal for documents that share a passage; an absent passage is shared by no two."""
        passage = doc.get(self.task.cluster) if self.task.cluster else None
        return digest(passage or doc)

    def right_answers(self, doc: Doc) -> list[int]:
        """Return the places of the right answers among the choices of `doc`, as lm-eval finds them.

        Raises:
            NoAnswer: there is none, or one is not among the choices; lm-eval would score every model 0.
        """
        loaded = self.loaded
        choices = loaded.doc_to_choice(doc)
        gold = loaded.doc_to_text(doc) if loaded.multiple_input else loaded.doc_to_target(doc)
        golds = gold if isinstance(gold, list) else [gold]
        places = [choices.index(one) if one in choices else one for one in golds]
        if not places or not all(isinstance(place, int) and 0 <= place < len(choices) for place in places):
            raise NoAnswer(f"its right answer {gold!r} is not among its choices {choices!r}"[:300])
        return places

    def places(self, limit: int | None = None) -> tuple[int, ...]:
        """Return the places of the documents that are asked, in the order in which they are: a random one, always the
        same, of which a `limit` takes the first."""
        order = list(range(len(self.documents)))
        Random(f"{self.task.task} {len(order)}").shuffle(order)
        return tuple(order[:limit])

    def unanswerable(self, limit: int | None = None) -> list[tuple[int, str]]:
        """Return the places of documents, of those that a `limit` leaves, that no answer could be right on, and why;
        none where the task's own code decides."""
        if not self._is_plain:
            return []
        with patched():
            reasons = ((place, self._unanswerable(self.documents[place])) for place in sorted(self.places(limit)))
            return [(place, why) for place, why in reasons if why]

    def _unanswerable(self, doc: Doc) -> str | None:
        """Return why no answer to `doc` could be right; None where one can."""
        try:
            if self.loaded.config.doc_to_choice is not None:
                self.right_answers(doc)
            elif self.loaded.OUTPUT_TYPE != "loglikelihood_rolling" and not _texts(self.loaded.doc_to_target(doc)):
                return "its right answer is empty"
        except NoAnswer as error:
            return str(error)
        except Exception as error:  # of a template, or of the definition's own code
            return f"lm-eval's definition does not read it: {type(error).__name__}: {brief(error)}"
        return None

    def requests(self, wanted: SuiteTask, places: Sequence[int]) -> list[tuple[int, Any]]:
        """Return what is asked of the documents at `places`, when a suite wants the task so: a document's place, and
        lm-eval's request.

        Raises:
            BadInput: lm-eval has not so many examples.
        """
        asked = self._copy(wanted, places)
        try:
            with patched():
                asked.build_all_requests(rank=0, world_size=1)
        except (ValueError, AssertionError) as error:  # of its sampler of examples
            if not wanted.shots:
                raise
            what = f"lm-eval cannot put {wanted.shots} examples before each question: {brief(error)}"
            raise bad_input(f"task {wanted.task}", what, "give the suite fewer shots") from None
        return [(places[request.doc_id], request) for request in asked.instances]

    def answers(self, wanted: SuiteTask, places: Sequence[int], model: Any, seed: int = SEED) -> Answers:
        """Return what `model`, an LM as lm-eval has them, answers to the documents at `places`, drawing from `seed`."""
        from lm_eval.evaluator import evaluate as run_lm_eval

        name = self.task.task
        asked = {"tasks": {name: self._copy(wanted, places)}, "groups": {}, "group_map": {}}
        _seed(seed)
        with patched():
            done = run_lm_eval(model, asked, bootstrap_iters=0)
        samples = done["samples"][name]
        read = self.task.filter or samples[0]["filter"]
        return Answers(
            samples=[{**one, "doc_id": places[one["doc_id"]]} for one in samples if one["filter"] == read],
            shots=done["n-shot"][name],
            version=str(done["versions"][name]),
        )

    def _copy(self, wanted: SuiteTask, places: Sequence[int]) -> Any:
        """Return a copy of lm-eval's object that has the documents at `places` only, set as the suite wants it, whose
        examples depend on no other documents."""
        asked = copy.copy(self.loaded)
        asked._config = config = copy.copy(asked._config)
        if wanted.shots:
            config.num_fewshot = wanted.shots
        if wanted.temperature:
            drawn = {"do_sample": True, "temperature": wanted.temperature}
            config.generation_kwargs = {**config.generation_kwargs, **drawn}
        chosen = [self.documents[place] for place in places]
        asked.test_docs = asked.validation_docs = lambda: chosen
        if hasattr(asked, "sampler"):
            asked.sampler = copy.copy(asked.sampler)
        asked.set_fewshot_seed(seed=SEED)
        return asked

    def prompts(self, limit: int | None = None) -> list[str]:
        """Return what is asked of each document that a `limit` leaves: each prompt with each of its answers, a line
        each."""
        wanted = SuiteTask(task=self.task.task)
        by_document: dict[int, list[str]] = {}
        for place, request in self.requests(wanted, self.places(limit)):
            by_document.setdefault(place, []).append("".join(map(str, request.args[:2])))
        return ["\n".join(asked) for asked in by_document.values()]

    def scores(self, samples: Iterable[Sample], metric: str) -> list[Document]:
        """Return the score of each sample by `metric`.

        Raises:
            BadInput: the metric is none of those that score each document.
        """
        with patched():
            return [self._score(sample, metric) for sample in samples]

    def _score(self, sample: Sample, metric: str) -> Document:
        """Return the score of one sample, with what is needed to pair it."""
        if metric not in sample:
            raise unscored(self.task, metric, sample["metrics"])
        return Document(
            id=sample["doc_id"],
            doc_hash=sample["doc_hash"],
            prompt_hash=sample["prompt_hash"],
            target_hash=sample["target_hash"],
            cluster=self.cluster(sample["doc"]),
            chance=self._chance(sample),
            score=float(sample[metric]),
            margin=self._margin(sample),
            **self._offered(sample, metric),
        )

    def _chance(self, sample: Sample) -> float:
        """Return the score of guessing, in [0, 1]: the share of the choices that are right; 0 of an answer that is
        written or not chosen among others."""
        choices = self._choices(sample)
        if choices == 1 or not all(len(arguments) == 2 for arguments in sample["arguments"]):
            return 0.0
        right = self._right_or_none(sample["doc"]) if self._is_plain else []
        return max(1, len(set(right))) / choices

    def _choices(self, sample: Sample) -> int:
        """Return the number of choices that were asked for. Mutual information asks for each a second time, after
        nothing; those come last."""
        asked = len(sample["arguments"])
        twice = self.loaded.OUTPUT_TYPE == "multiple_choice" and "acc_mutual_info" in self.loaded.aggregation()
        return asked // 2 if twice else asked

    def _right_or_none(self, doc: Doc) -> list[int]:
        """Return the places of the right answers; none where the task's own code decides what is right."""
        if self.loaded.config.doc_to_choice is None:
            return []
        try:
            return self.right_answers(doc)
        except NoAnswer:
            return []

    def _logprobs(self, sample: Sample) -> tuple[float, ...]:
        """Return the log-probability of each answer that was offered, in nats; none where the model writes."""
        if self.loaded.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
            return ()
        return tuple(float(response[0][0]) for response in sample["resps"][: self._choices(sample)])

    def _offered(self, sample: Sample, metric: str) -> dict[str, Any]:
        """Return the fields of a document that tell how probable each answer was, and which is right by `metric`."""
        logprobs = self._logprobs(sample)
        if not logprobs or not self._is_plain or metric not in CHOOSES:
            return {"logprobs": logprobs}
        if len(logprobs) == 1:
            return {"logprobs": logprobs, "right": (0,)}
        measured = CHOOSES[metric]
        choices = self.loaded.doc_to_choice(sample["doc"])
        lengths = tuple(measured(choice) for choice in choices) if measured else ()
        return {"logprobs": logprobs, "right": tuple(self._right_or_none(sample["doc"])), "lengths": lengths}

    def _margin(self, sample: Sample) -> float | None:
        """Return the right answer's margin in nats, where log-probabilities were asked and one answer is right."""
        logprobs = list(self._logprobs(sample))
        if len(logprobs) < 2:
            return logprobs[0] if logprobs else None
        match self._right_or_none(sample["doc"]):
            case [right]:
                return logprobs[right] - max(logprobs[:right] + logprobs[right + 1 :])
            case _:
                return None


def task_inputs(task: Task) -> dict[str, Any]:
    """Return the inputs that decide a task's questions and documents; those of the hub may still change."""
    return {"task": task.model_dump(exclude=NOT_ASKED), "data": data_digest(task)}


def unscored(task: Task, metric: str, metrics: Iterable[str]) -> BadInput:
    """Return the error for a metric that is none of those that score the task's documents."""
    return bad_input(f"task {task.task}", f"has no per-document metric '{metric}'", f"it scores: {', '.join(metrics)}")


def _texts(target: Any) -> list[str]:
    """Return the texts of a target, which is one or a list of them, without empty ones."""
    texts = target if isinstance(target, list) else [target]
    return [str(text) for text in texts if str(text).strip()]


def _seed(seed: int) -> None:
    """Seed everything that a task or a model may draw from, as `lm_eval` does."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
