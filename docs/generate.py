"""Regenerates the documents that are made from code: `make docs`. The tests check that they are current."""

import ast
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from docs.tree import architecture_page
from pipelines import recipe as recipe_package
from pipelines.calibration.tokenizing import SHORTEST
from pipelines.cli import main as cli
from pipelines.cli.options import full_help
from pipelines.cli.tables.lists import by_family
from pipelines.core.exit_codes import EXITS, SEVERAL
from pipelines.formats.description import Numbers
from pipelines.formats.gguf_types import BLOCKS, DEFAULTS, FALLBACKS, TensorType
from pipelines.formats.packings import HOLDS, Packing, layout
from pipelines.formats.schemes import FAMILIES, OWN_SCHEMES, SCHEMES, SMALLEST_GROUP, SchemeName
from pipelines.recipe import library
from pipelines.recipe.load import load_recipe, load_set, load_suite
from pipelines.recipe.methods import Gguf, Gptq, Method, Rtn, Rule
from pipelines.recipe.recipe import Calibrate, Gate, Recipe
from pipelines.recipe.suite import Limits, Policy, SuiteTask
from pipelines.reporting.card import listed
from pipelines.reporting.record import Manifest
from pipelines.reporting.serving import checkpoint_line, loader, runtime_lines
from pipelines.serving.loads import GGUF_ONLY, TITLES, VERSIONS, Stored
from pipelines.serving.where import ARCHITECTURES, NAMES, Where, where

HERE = Path(__file__).parent
METHODS = typing.get_args(Method)

ABOUT = {
    **{name: family.about for name, family in FAMILIES.items()},
    "GGUF": "One file for llama.cpp, Ollama and LM Studio, on CPUs and on all GPUs; judged in llama.cpp itself. "
    "[gguf.md](gguf.md) says how.",
    "mixed": "Recipes with `rules`: some modules get another scheme than the rest.",
}
HEAD = """\
# Recipes

Made from `recipes/` and from the code by `make docs`; edit those instead. The [glossary](glossary.md) says what a
scheme, a format and a packing are.

A recipe says how a checkpoint becomes an artifact and what is asked of it. `quantgate list` lists the recipes,
`quantgate show NAME` prints one with its defaults, and `quantgate plan NAME --model YOUR/MODEL` says what it would do
to each layer of a model. `make quantize RECIPE="fp8 int8" MODEL=YOUR/MODEL` takes a model through several and compares
them.
"""
CLI_HEAD = """\
# The command

Made from the command itself by `make docs`; edit its help instead.

`make quantize` calls `quantgate run`, and `make release` calls `quantgate release`. `pip install .` gives you the
command; in a checkout it is `.venv/bin/quantgate`, once `make setup` has run. `--help` (or `-h`) works after each
command, `quantgate --version` prints the version. A command with `--json` prints a record for programs; `--set` changes
a value of a recipe for one run.

RECIPE is a name (`quantgate list`) or a path that ends in `.yaml`. MODEL is a folder with safetensors weights or a hub
id. RUN is a published artifact, a `run.json`, or the folder of either.
"""
MAKE = """\
make answers 2 for any failed command and prints the code it saw (`Error 3`). A job that tells 3 from 4 calls
`quantgate` itself. In a release job, the code is all there is to check. The record `quantgate.json`
([schema](quantgate.schema.json)) holds the rest: `gate.verdict`, `gate.certified`, `gate.retention`,
`gate.lower_bound` (those of `gate.statistic`), `gate.accuracy` and `gate.expected`, `size.bits_per_weight`.

Code 4 of `quantgate verify --runtime vllm` means that vLLM cannot run this format on this machine. Code 1 of the same
command means that vLLM does not agree with transformers.
"""
_READ = [f"`{name}`" for name, scheme in SCHEMES.items() if scheme.experts_are_read]
EXPERTS = textwrap.fill(
    f"In a mixture of experts that stores them one by one, experts can be {', '.join(_READ[:-1])} or {_READ[-1]}, all "
    "in the same format: transformers makes one tensor of them, and reads no others. Some or all of them can be kept "
    "beside FP8 only. The plan refuses the rest; other modules can be in any format, by `rules`.",
    width=120,
)
SUITES = """\
### A suite of your own

A suite is a file that `gate.suite` (or `--suite`) names by its path, as seen from where the command is started:

```yaml
version: 1
name: little
summary: two tasks, some documents of each
tasks:
  - {task: sciq, limit: 200}
  - {task: arc_easy, limit: 200, weight: 2}
policy: {statistic: expected, decide: certified, floor: 0.9}
```
"""
PATTERNS = f"""\
## Which modules: `ignore`

A pattern names linear modules in one of three ways. One that matches nothing is an error.

| pattern | means |
|---|---|
| `lm_head`, `self_attn.o_proj` | modules of this name, or whose name ends in it, from a dot on |
| `"layer:0"`, `"layer:-1"` | every linear module of a decoder layer; -1 is the last, -2 the one before |
| `"re:.*layers\\.1[0-9]\\..*_proj"` | modules whose name this regular expression matches, from the name's start |

```yaml
quantize: {{method: rtn, scheme: FP8_DYNAMIC, ignore: [lm_head, down_proj, "layer:0", "layer:-1"]}}
```

keeps the head, all down projections and two whole layers in the source's precision. `ignore` replaces the default, so
name `lm_head` again. Embeddings, norms, the routers of experts, experts stored as one tensor, and towers for images or
sound are never quantized. What runtimes load as one matrix (q, k and v; gate and up) must be treated alike.

{EXPERTS}

## Which scheme: `rules`

Modules that a rule matches get its scheme and group size. The first rule that matches decides; `ignore` comes before
all of them.

```yaml
quantize:
  method: gptq
  scheme: W4A16
  rules:
    - {{match: ["layer:0", "layer:-1"], scheme: W8A16}}
    - {{match: [down_proj], scheme: W4A16, group_size: 64}}
```

makes everything INT4 in groups of 128 but the first and last layer, which become INT8, and the other layers' down
projections, which get groups of 64.

## Widths that the group size does not divide: `on_indivisible`

A layer of 576 input columns has no whole number of groups of 128.

| value | what happens to such a layer |
|---|---|
| `error` | the recipe is refused, with a group size that would fit |
| `skip` | it stays in 16 bits |
| `shrink` | its groups become the largest power of two that divides: 64. Where that is below {SMALLEST_GROUP}, or the \
scheme's group size is fixed, it stays in 16 bits |

```yaml
quantize: {{method: gptq, scheme: W4A16, group_size: 128, on_indivisible: shrink}}
```

`quantgate plan` shows what each layer got and why, and so do the artifact's card and record.

## Text of your own: `calibrate.set`

A set is a file of a few lines, which a recipe names by its path: `--set calibrate.set=mine.yaml`.

```yaml
version: 1
name: mine
summary: Our support tickets.
source: {{kind: files, paths: [tickets.jsonl, notes.txt]}}
```

The files lie beside it or below its folder, are UTF-8, and are looked at before anything is computed:

| file | a text is |
|---|---|
| `.txt` | what lies between two blank lines |
| `.jsonl` | a line like `{{"text": "…"}}` or `{{"messages": [{{"role": "user", "content": "…"}}]}}` |
| `.parquet` | a row of the column `text` or `messages` |

Messages are rendered with the model's own chat template. Texts of fewer than {SHORTEST} tokens are left out. Samples
are cut to the positions that a model has, where those are fewer than `seq_len`, and a run says so. A text with a token
that the model has no embedding for is refused.
"""


def main() -> None:
    """Write docs/quantgate.schema.json, docs/recipes.md, docs/cli.md, the tree in docs/architecture.md and the table in
    docs/serve.md."""
    schema = Manifest.model_json_schema(mode="serialization")
    (HERE / "quantgate.schema.json").write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")
    (HERE / "recipes.md").write_text(recipes_page(), encoding="utf-8")
    (HERE / "cli.md").write_text(cli_page(), encoding="utf-8")
    (HERE / "architecture.md").write_text(architecture_page(), encoding="utf-8")
    (HERE / "serve.md").write_text(serve_page(), encoding="utf-8")


def serve_page() -> str:
    """Return docs/serve.md with the table of what loads where as it is now."""
    page = (HERE / "serve.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(LOADS_BEGIN)
    _, _, after = rest.partition(LOADS_END)
    runtimes = [runtime for runtime in TITLES if runtime not in GGUF_ONLY]
    head = " | ".join(f"{TITLES[runtime]} {VERSIONS[runtime]}" for runtime in runtimes)
    lines = [f"| scheme | stored as | {head} |", "|---|---|" + "---|" * len(runtimes)]
    for stored, scheme in LOADED:
        cells = " | ".join(_loaded(where(runtime, stored, [(scheme, None)])) for runtime in runtimes)
        lines.append(f"| {f'`{scheme}`' if scheme else 'any'} | {stored} | {cells} |")
    return f"{before}{LOADS_BEGIN}" + "".join(f"{line}\n" for line in lines) + f"{LOADS_END}{after}"


LOADS_BEGIN, LOADS_END = "<!-- begin of the table: make docs -->\n", "<!-- end of the table -->\n"
LOADED: list[tuple[Stored, SchemeName | None]] = [
    *(("compressed-tensors", scheme) for scheme in OWN_SCHEMES),
    *((packing, scheme) for packing, schemes in HOLDS.items() for scheme in schemes),
    ("gguf", None),
]


def _loaded(spread: tuple[Where, ...]) -> str:
    """Return what a runtime does, for a cell: where it serves, or why it does not."""
    known = [one for one in spread if one.answer in ("native", "emulated")]
    if not known:
        return f"{spread[0].answer}: {spread[0].reason}"
    return "; ".join(", ".join(_places(one)) + (", emulated" * (one.answer == "emulated")) for one in known)


def _places(one: Where) -> Iterator[str]:
    """Yield short names of hardware: `8.9+`, `7.5–8.6`, `MI300`."""
    capabilities = [place for place in one.places if isinstance(place, float)]
    if capabilities:
        first, last = capabilities[0], capabilities[-1]
        yield f"{first}+" if last == max(ARCHITECTURES) else f"{first}–{last}" if last != first else f"{first}"
    yield from (NAMES[place].removeprefix("AMD ") for place in one.places if not isinstance(place, float))


def cli_page() -> str:
    """Return the text of docs/cli.md."""
    commands = list(_commands(cli.main, "quantgate"))
    lines = [CLI_HEAD, "| command | does |", "|---|---|"]
    lines += [f"| [`{name}`](#{name.replace(' ', '-')}) | {_summary(command)} |" for name, command in commands]
    lines += ["", "## Exit codes", "", "| code | means |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in EXITS.items()]
    lines += ["", SEVERAL, "", MAKE]
    for name, command in commands:
        lines += _command(name, command)
    return "\n".join(lines)


def _commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield each command below `group`, with its whole name."""
    for part, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{name} {part}")
        else:
            yield f"{name} {part}", command


def _summary(command: click.Command) -> str:
    """Return the first sentence of the help of `command`, which ends where a line does or before a capital."""
    return _prose(re.split(r"\n\n|(?<=[.;]) (?=[A-Z])", inspect.cleandoc(command.help or ""))[0])


def _command(name: str, command: click.Command) -> list[str]:
    """Return the lines of the section on a command: usage, help, and a table of what it takes."""
    context = click.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    lines = [f"## {name}", "", "```", usage, "```", "", full_help(command), ""]
    taken = [one for one in command.params if isinstance(one, click.Argument)]
    options = [one for one in command.params if isinstance(one, click.Option)]
    lines += ["| takes | default | meaning |", "|---|---|---|"]
    lines += [_argument(context, argument) for argument in taken]
    lines += [_option(context, option) for option in options]
    return [*lines, ""]


def _argument(context: click.Context, argument: click.Argument) -> str:
    need = "required" if argument.required else "optional"
    return f"| `{_cell(argument.make_metavar(context))}` | {_given(argument)} | argument, {need} |"


def _option(context: click.Context, option: click.Option) -> str:
    record = option.get_help_record(context)
    assert record
    need = " Required." if option.required else ""
    return f"| `{_cell(record[0])}` | {_given(option)} | {_tagless(_prose(option.help))}{need} |"


def _given(parameter: click.Parameter) -> str:
    """Return the default of `parameter`, where it is a value that one could write; else nothing."""
    default = parameter.default
    return f"`{default}`" if isinstance(default, str | float) and not isinstance(default, bool) else ""


def _tagless(text: str) -> str:
    """Return `text` with each `<` escaped: Markdown takes `<model>` for HTML and shows nothing of it."""
    return text.replace("<", "\\<")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def recipes_page() -> str:
    """Return the text of docs/recipes.md."""
    grouped = by_family(load_recipe(name) for name in library.names("recipe"))
    lines = [HEAD]
    for family, recipes in grouped.items():
        lines += [f"## {family}", "", ABOUT[family], ""]
        for recipe in recipes:
            lines += _section(recipe)
    lines += ["## Every key of a recipe", "", "| key | type | default | meaning |", "|---|---|---|---|", *_keys(), ""]
    lines += ["Methods:", "", *(f"- `{_name(method)}`: {_prose(method.__doc__)}" for method in (*METHODS, Gguf)), ""]
    lines += ["## Calibration sets and suites", "", "`calibrate.set` names one of these texts:", ""]
    lines += [f"- `{name}`: {load_set(name).summary}" for name in library.names("set")]
    lines += ["", "`gate.suite` names one of these sets of tasks:", ""]
    lines += [f"- `{name}`: {load_suite(name).summary}" for name in library.names("suite")]
    return "\n".join([*lines, "", SUITES, *_suite_keys(), "", PATTERNS])


def _suite_keys() -> Iterator[str]:
    """Yield a table row for each key that a suite may have."""
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    yield from _rows(SuiteTask, "tasks[].", SuiteTask.model_fields)
    yield from _rows(Policy, "policy.", [name for name in Policy.model_fields if name != "limits"])
    yield from _rows(Limits, "policy.limits.", Limits.model_fields)


def _section(recipe: Recipe) -> list[str]:
    quantize = recipe.quantize
    lines = [f"### {recipe.name}", "", recipe.summary, "", "```", f"make quantize RECIPE={recipe.name}", "```", ""]
    if isinstance(quantize, Gguf):
        weighed = "; rounding errors are weighed by an importance matrix" if quantize.imatrix else ""
        lines.append(f"- type: `{quantize.type}`, mostly {_blocks(DEFAULTS[quantize.type])}{weighed}")
        lines.append(f"- {_no_room(DEFAULTS[quantize.type])}")
        return [*lines, f"- method: `{quantize.method}`", f"- calibration: {_calibration(recipe)}", ""]
    lines += _scheme(recipe.packing, quantize.scheme, quantize.group_size, "scheme")
    for rule in quantize.rules:
        lines += _scheme(recipe.packing, rule.scheme, rule.group_size, f"for {listed(rule.match)}")
    if any(SCHEMES[name].weights.group_size for name in quantize.schemes):
        sizes = "block does not divide a layer's sides" if SCHEMES[quantize.scheme].is_block else WIDTH
        lines.append(f"- where the {sizes}: {INDIVISIBLE[quantize.on_indivisible]}")
    if quantize.kv_cache:
        lines.append(
            f"- KV cache: FP8 (E4M3), one measured scale for each layer's keys and one for its values; "
            f"`{checkpoint_line('FOLDER', recipe)}`"
        )
    lines.append(f"- kept in the source's precision: {listed(quantize.ignore) or 'nothing that can be quantized'}")
    lines.append(f"- method: `{quantize.method}`")
    if isinstance(quantize, Gptq) and quantize.smoothquant:
        lines[-1] += f", after SmoothQuant {quantize.smoothquant}"
    if quantize.scheme == "W8A8_STATIC":
        lines[-1] += ", after SmoothQuant"
    if quantize.engine != "quantgate":
        lines[-1] += f", by engine `{quantize.engine}`"
    if recipe.packing != "compressed-tensors":
        lines.append(f"- stored as: `{recipe.packing}`. {loader(recipe)}")
    return [*lines, f"- calibration: {_calibration(recipe)}", *_runtimes(recipe), ""]


WIDTH = "group size does not divide a layer's width"
INDIVISIBLE = {
    "error": "the recipe is refused for this model",
    "skip": "the layer stays in 16 bits",
    "shrink": f"the largest power of two that does is taken; below {SMALLEST_GROUP}, the layer stays in 16 bits",
}


def _scheme(packing: Packing, name: SchemeName, group_size: int | None, label: str) -> list[str]:
    scheme = SCHEMES[name]
    stored = f" (compressed-tensors `{scheme.format}`)" if packing == "compressed-tensors" else ""
    activations = _words(scheme.activations, group_size, "token") if scheme.activations else "16 bits"
    if scheme.activations and scheme.activations.dynamic is False:
        activations += ", measured on the calibration text"
    weights = _words(scheme.weights, group_size, "row")
    return [
        f"- {label}: `{name}`{stored}",
        f"    - weights: {weights}; {_stored_scales(packing, name, group_size)}",
        f"    - activations: {activations}",
    ]


def _words(numbers: Numbers, chosen: int | None, line: str) -> str:
    """Return a number format in words: `INT4, one scale per row and group of 128 columns`.

    `line` is what a vector of input columns is called: a row of the weight, or a token.
    """
    size = chosen or numbers.group_size
    shared = {
        "tensor": "one scale per tensor",
        "channel": "one scale per output channel",
        "token": "one scale per token",
        "group": f"one scale per {line} and group of {size} input columns",
        "tensor_group": f"one scale per {line} and group of {size} input columns, and one per tensor",
        "block": f"one scale per block of {size}×{size}",
    }[numbers.strategy]
    zero = "" if numbers.symmetric else ", with zero points"
    found = {True: ", found at run time", "local": "; the tensor's is measured, the groups' are found at run time"}
    return numbers.element.title + ", " + shared + zero + found.get(numbers.dynamic, "")


SCALES = {"F16": "float16", "F32": "float32", "F8_E4M3": "FP8 (E4M3)", "U8": "E8M0 (powers of two)"}
SOURCE_DTYPE = "BF16"


def _stored_scales(packing: Packing, name: SchemeName, group_size: int | None) -> str:
    """Return a phrase on the type of weights' scales, by the tensors that the packing makes of a weight."""
    numbers = SCHEMES[name].weights
    tensors = layout(packing, name, (256, 256), SOURCE_DTYPE, group_size or numbers.group_size)
    local = next(tensors[key][0] for key in ("weight_scale", "scales", "weight.absmax") if key in tensors)
    said = f"scales in {SCALES.get(local, 'the type of the source')}"
    return f"{said}, the tensor's in float32" if numbers.strategy == "tensor_group" else said


def _blocks(tensor: TensorType) -> str:
    """Return a phrase on a type: `Q4_K tensors (blocks of 256 weights in 144 bytes: 4.50 bits per weight)`."""
    weights, size = BLOCKS[tensor]
    return f"{tensor} tensors (blocks of {weights} weights in {size} bytes: {size * 8 / weights:.2f} bits per weight)"


def _no_room(tensor: TensorType) -> str:
    """Return a phrase on what llama.cpp does where blocks of `tensor` do not fit."""
    weights, _ = BLOCKS[tensor]
    instead = FALLBACKS.get(tensor, "F16")
    return f"where {weights} does not divide a tensor's rows, llama.cpp takes {instead} in place of {tensor}"


def _calibration(recipe: Recipe) -> str:
    if recipe.calibrate is None:
        return "none"
    wanted = recipe.calibrate
    return f"{wanted.samples} samples of {wanted.seq_len} tokens from `{wanted.set}`: {load_set(wanted.set).summary}"


def _runtimes(recipe: Recipe) -> list[str]:
    return [f"- {line}" for line in runtime_lines(recipe.packing, [(name, None) for name in recipe.schemes])]


def _keys() -> Iterator[str]:
    """Yield a table row for each key that a recipe may have."""
    yield from _rows(Recipe, "", ("version", "name", "summary"))
    shared = [name for name in Rtn.model_fields if all(name in method.model_fields for method in METHODS)]
    methods = ", ".join(f"`{_name(method)}`" for method in (*METHODS, Gguf))
    yield f"| `quantize.method` | {methods} | required | How weights are rounded; see below. |"
    yield from _rows(Rtn, "quantize.", [name for name in shared if name not in ("method", "rules")])
    yield f"| `quantize.rules` | list | `[]` | {_docs(Rtn)['rules']} |"
    yield from _rows(Rule, "quantize.rules[].", ["match"])
    yield "| `quantize.rules[].scheme`, `.group_size` | as above | required, none | As above, for these modules. |"
    for method in METHODS:
        own = [name for name in method.model_fields if name not in shared]
        yield from _rows(method, "quantize.", own, f"Method {_name(method)} only. ")
    yield from _rows(Gguf, "quantize.", [name for name in Gguf.model_fields if name != "method"], "Method gguf only. ")
    yield from _rows(Recipe, "", ["export"])
    asked = f"{_prose(Calibrate.__doc__)} Recipes that need text must have it, others must not."
    yield f"| `calibrate` | mapping | none | {asked} |"
    yield from _rows(Calibrate, "calibrate.", Calibrate.model_fields)
    yield f"| `gate` | mapping | all defaults | {_prose(Gate.__doc__)} |"
    yield from _rows(Gate, "gate.", Gate.model_fields)


def _rows(model: type[BaseModel], prefix: str, names: Any, note: str = "") -> Iterator[str]:
    documented = _docs(model)
    for name in names:
        field = model.model_fields[name]
        kind = _type(field.annotation, field.metadata)
        yield f"| `{prefix}{name}` | {kind} | {_default(field.default)} | {note}{documented.get(name, '')} |"


RECIPE = f"{recipe_package.__name__}."
"""Beginning of the names of modules whose docstrings are documentation."""


def _docs(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring below each field of `model` and of its base classes, by the field's name."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or not base.__module__.startswith(RECIPE):
            continue
        (body,) = (node.body for node in ast.parse(inspect.getsource(base)).body if isinstance(node, ast.ClassDef))
        for field, below in itertools.pairwise(body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = _prose(text)
    return found


def _type(annotation: Any, metadata: list[Any]) -> str:
    """Return a field's type for people, with its limits."""
    plain = {int: "integer", float: "number", str: "text", bool: "`true` or `false`"}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        kind = ", ".join(f"`{value}`" for value in arguments)
    elif origin in (typing.Union, types.UnionType):
        kind = " or ".join(_type(part, []) for part in arguments if part is not type(None))
    elif origin is typing.Annotated:
        kind = _type(arguments[0], [])
    elif origin is tuple:
        kind = "list of patterns"
    elif origin is dict:
        kind = "mapping of patterns to types"
    else:
        kind = plain[annotation]
    limits = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    told = [
        f"{sign} {getattr(rule, name)}" for rule in metadata for name, sign in limits.items() if hasattr(rule, name)
    ]
    return ", ".join([kind, *told])


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    return f"`{json.dumps(value)}`" if isinstance(value, bool | dict) else f"`{value}`"


def _name(method: type[BaseModel]) -> str:
    return str(typing.get_args(method.model_fields["method"].annotation)[0])


def _prose(docstring: str | None) -> str:
    """Return a docstring on one line, for a table."""
    return re.sub(r"\s+", " ", docstring or "").strip().replace("|", "\\|")


if __name__ == "__main__":
    main()
