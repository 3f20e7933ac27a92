"""Strict YAML into frozen pydantic models: every problem at once, each with file, line, column and remedy.

Nothing a file can say runs code or multiplies itself: no tags, no anchors, no aliases, no duplicate keys, no depth that
a parser would spend its time in.
"""

import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipelines.core.errors import BadInput, Problem, bad_input, did_you_mean, nearest, refuse

HALF = re.compile("[\ud800-\udfff]")
"""Pattern of half a character of UTF-16 (a lone surrogate), which stands for no character by itself."""
KeyPath = tuple[str | int, ...]
MAX_FILE_BYTES = 1 << 20
MAX_SHOWN = 80
"""Characters of the longest option that messages repeat."""
MAX_DEPTH = 64
"""Deepest nesting that is read: far more than a hand-written file has. PyYAML takes a millisecond for each bracket
within a thousand others."""


class Frozen(BaseModel):
    """Plain immutable data that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML's plain types, and `1e-3` as the number it is (PyYAML wants `1.0e-3`)."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


OPENING = (
    yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken, yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken
)  # fmt: skip
CLOSING = (yaml.BlockEndToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)


class NotPlain(yaml.YAMLError):
    """YAML that could run code, multiply itself or nest without end."""

    def __init__(self, mark: yaml.Mark, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.mark, self.what, self.remedy = mark, what, remedy


def check_plain(text: str) -> None:
    """Read the tokens of `text` up to the first that a plain file does not have, before anything is made of them.

    Raises:
        NotPlain: there is one.
        yaml.YAMLError: it is no YAML.
    """
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
            raise NotPlain(token.start_mark, "anchors, aliases and tags are not allowed", "write the value out")
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > MAX_DEPTH:
            raise NotPlain(token.start_mark, "is nested too deeply")


@dataclass(frozen=True)
class YamlFile:
    """A YAML file as plain data, and where each of its keys stands (for error messages)."""

    path: Path
    data: Any
    places: Mapping[KeyPath, str]
    overrides: Mapping[KeyPath, str] = field(default_factory=dict)
    """Keys that options gave, and what messages call the option of each."""
    alone: "YamlFile | None" = None
    """The file without what options gave; None where none did."""


def load(path: Path, model: type[M], overrides: Iterable[str] = ()) -> M:
    """Read `path` as a `model`, after applying `overrides` of the form `key.key=value`.

    Raises:
        BadInput: the file cannot be read, is not plain YAML, or does not fit the model.
    """
    return fit(read(path, overrides), model)


def read(path: Path, overrides: Iterable[str] = ()) -> YamlFile:
    """Return the data of the file `path` with `overrides` (`key.key=value`) applied.

    Raises:
        BadInput: the file cannot be read, is not plain YAML, or an override is wrong.
    """
    return _override(_read(path), overrides)


def fit(document: YamlFile, model: type[M]) -> M:
    """Return `document` as a `model`.

    Raises:
        BadInput: with all that does not fit, each with its place.
    """
    refuse(_no_text(document))
    try:  # as JSON, whose strict mode knows that a list may become a tuple, but a string no number
        text = json.dumps(document.data, default=str)
    except ValueError:  # Python writes no integer of more digits than it would read
        raise bad_input(document.path, "holds a number of thousands of digits") from None
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        details = error.errors()
        problems = [_explain(document, model, detail) for detail in details if not _follows(detail, details)]
    raise BadInput(_blamed(document, model, problems))


Found = tuple[Problem, KeyPath]
"""A problem, and the key path that it is about."""


def _blamed(document: YamlFile, model: type[BaseModel], found: list[Found]) -> Iterator[Problem]:
    """Yield what was `found`; problems that the file alone does not have name the options that they are due to."""
    own = _alone(document, model)
    for problem, location in found:
        if own is None or problem.where in document.overrides.values() or problem.what in own:
            yield problem
        else:
            said = f"{', '.join(_nearest_options(document, location))} (with {problem.where})"
            yield Problem(said, problem.what, problem.remedy)


def _alone(document: YamlFile, model: type[BaseModel]) -> set[str] | None:
    """Return what is wrong with the file of `document` without options; None where there are none."""
    if document.alone is None:
        return None
    try:
        fit(document.alone, model)
    except BadInput as error:
        return {problem.what for problem in error.problems}
    return set()


def _nearest_options(document: YamlFile, location: KeyPath) -> list[str]:
    """Return the options that gave keys at `location` or below, or else below the innermost key above with any."""
    given = document.overrides
    depths = range(len(location), -1, -1)
    return next(found for n in depths if (found := [given[path] for path in given if path[:n] == location[:n]]))


def _no_text(document: YamlFile) -> Iterator[Problem]:
    """Yield keys and values that hold half a character: no file in UTF-8 does, but an escape or an option may."""
    for path, text in _texts(document.data):
        if HALF.search(text):
            what = "holds half a character (a lone surrogate), which is no text"
            yield Problem(place(document, path), what, "write the text in UTF-8")


def _texts(value: Any, at: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Yield every key and every text in `value`, which is at `at`, with its place."""
    if isinstance(value, str):
        yield at, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key), key
            yield from _texts(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*at, index))


def _follows(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """Tell whether `detail` only says that a list is too short because its items are wrong."""
    loc = detail["loc"]
    return detail["type"] == "too_short" and any(d["loc"][: len(loc)] == loc for d in details if d is not detail)


def _read(path: Path) -> YamlFile:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise bad_input(path, f"is larger than {MAX_FILE_BYTES} bytes; this is no hand-written file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise bad_input(path, f"cannot be read: {error}") from None
    try:
        check_plain(text)
        node = yaml.compose(text, Loader=_Loader)
    except NotPlain as error:
        raise bad_input(_place(path, error.mark), error.what, error.remedy) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise bad_input(f"{path}:{line}", f"is not valid YAML: character #x{error.character:04x}") from None
    except yaml.MarkedYAMLError as error:
        where = _place(path, error.problem_mark) if error.problem_mark else str(path)
        raise bad_input(where, f"is not valid YAML: {error.problem}") from None
    if not isinstance(node, yaml.MappingNode):
        raise bad_input(path, "is not a YAML mapping of keys to values")
    places: dict[KeyPath, str] = {(): f"{path}:1:1"}
    problems: list[Problem] = []
    data = _plain(node, (), path, places, problems)
    refuse(problems)
    return YamlFile(path, data, places)


def _plain(node: yaml.Node, at: KeyPath, path: Path | str, places: dict[KeyPath, str], problems: list[Problem]) -> Any:
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag != yaml.Loader.DEFAULT_SCALAR_TAG:
                problems.append(Problem(_place(path, key_node.start_mark), "a key must be text", "put it in quotes"))
                continue
            key = key_node.value
            here = (*at, key)
            if key in result:
                problems.append(Problem(_place(path, key_node.start_mark), f"key '{key}' is given twice"))
            places[here] = _place(path, key_node.start_mark)
            result[key] = _plain(value_node, here, path, places, problems)
        return result
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            places[(*at, index)] = _place(path, item.start_mark)
            items.append(_plain(item, (*at, index), path, places, problems))
        return items
    return _scalar(node, path, problems)


def _scalar(node: yaml.Node, path: Path | str, problems: list[Problem]) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError):  # looks like a date or a number and is none, or is `<<` or `=`
        what = f"'{node.value}' is not a value that YAML knows"
        problems.append(Problem(_place(path, node.start_mark), what, "put it in quotes"))
    finally:
        loader.dispose()


def _place(path: Path | str, mark: yaml.Mark) -> str:
    return f"{path}:{mark.line + 1}:{mark.column + 1}"


def _override(document: YamlFile, overrides: Iterable[str]) -> YamlFile:
    data, places, given = document.data, dict(document.places), dict[KeyPath, str]()
    for text in overrides:
        key, separator, value = text.partition("=")
        path: KeyPath = tuple(key.split("."))
        if not separator or not all(path) or len(path) > MAX_DEPTH:
            raise bad_input(f"--set {text}", "is not of the form key=value", "for example --set calibrate.samples=64")
        given[path] = where = _option(key, text)
        data = _replaced(data, path, _value(value, where))
        places = {place: where for place, where in places.items() if place[: len(path)] != path} | {path: where}
    return YamlFile(document.path, data, places, given, document if given else None)


def _option(key: str, text: str) -> str:
    """Return what messages call the option that gave `text`: with its value, unless that is long or no line."""
    return f"--set {text if text.isprintable() and len(text) <= MAX_SHOWN else key}"


def _value(text: str, at: str) -> Any:
    """Return the value of `text` as YAML; if it is none, or none that a file might hold, the text itself.

    Raises:
        BadInput: it is a list or a mapping with a mistake in it, like a key that is given twice.
    """
    try:
        check_plain(text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError:
        return text
    problems: list[Problem] = []
    value = None if node is None else _plain(node, (), at, {}, problems)
    if problems and isinstance(node, yaml.ScalarNode):
        return text
    refuse(problems)
    return value


def _replaced(data: Any, path: KeyPath, value: Any) -> Any:
    if not path:
        return value
    base = data if isinstance(data, dict) else {}
    return {**base, path[0]: _replaced(base.get(path[0]), path[1:], value)}


def _explain(document: YamlFile, model: type[BaseModel], detail: ErrorDetails) -> Found:
    """Return what is wrong by one of pydantic's errors."""
    location, owner = _locate(model, detail["loc"])
    key = ".".join(str(part) for part in location)
    where = place(document, location)
    match detail["type"]:
        case "extra_forbidden":
            known = sorted(owner.model_fields) if owner else []
            near = _inside(owner, location) or nearest(str(location[-1]), known)[:1]
            remedy = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            return Problem(where, f"unknown key '{key}'", remedy), location
        case "missing":
            return Problem(where, f"key '{key}' is missing"), location
        case "union_tag_invalid" | "union_tag_not_found":
            context = detail.get("ctx", {})
            tag = str(context["discriminator"]).strip("'")
            given = context.get("tag")
            where = place(document, (*location, tag))
            what = f"'{key}.{tag}' is '{given}'" if given else f"key '{key}.{tag}' is missing"
            expected = str(context.get("expected_tags", "see docs/recipes.md"))
            guess = did_you_mean(str(given), re.findall(r"'([^']*)'", expected)) if given else ""
            return Problem(where, what, guess or f"known: {expected}"), location
        case "literal_error":
            guess = did_you_mean(str(detail["input"]), re.findall(r"'([^']*)'", detail["msg"]))
            return Problem(where, f"{key}: {detail['msg']}", guess), location
        case _:
            message = detail["msg"].removeprefix("Value error, ")
            return Problem(where, f"{key}: {message}" if key else message), location


def _inside(owner: type[BaseModel] | None, location: KeyPath) -> list[str]:
    """Return the place, one level below, of a key that `owner` itself does not know; empty if nothing there has it."""
    *above, last = map(str, location)
    below = {name: _models_in(field.annotation) for name, field in owner.model_fields.items()} if owner else {}
    found = [name for name, models in below.items() if any(last in model.model_fields for model in models)]
    return [".".join((*above, name, last)) for name in found[:1]]


def place(document: YamlFile, path: KeyPath) -> str:
    """Return where the key path `path`, or the innermost part of it that the file has, stands, for messages."""
    return next(document.places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in document.places)


def _locate(model: type[BaseModel], loc: KeyPath) -> tuple[KeyPath, type[BaseModel] | None]:
    """Return the key path of an error as the file spells it, and the model that owns its last key.

    pydantic puts a union's tag into the location; the file has no such key, so it is left out.
    """
    path: list[str | int] = []
    owner: type[BaseModel] | None = model
    current: list[type[BaseModel]] = [model]
    for part in loc:
        if len(current) > 1 and isinstance(part, str):  # a union's tag: narrow to the model that carries it
            current = [m for m in current if _has_tag(m, part)]
            continue
        matches = [m for m in current if isinstance(part, str) and part in m.model_fields]
        if matches or isinstance(part, int):
            owner = matches[0] if matches else owner
            current = _models_in(matches[0].model_fields[str(part)].annotation) if matches else current
            path.append(part)
        else:  # an unknown key of the current model
            owner = current[0] if current else None
            path.append(part)
    return tuple(path), owner


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return any(tag in typing.get_args(field.annotation) for field in model.model_fields.values())
