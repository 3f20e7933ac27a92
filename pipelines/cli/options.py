"""Options that several commands share."""

import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pipelines.publishing.signature import Signer, Trust

    M = TypeVar("M", bound=BaseModel)

Command = Callable[..., Any]
PATH = click.Path(path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


class FiniteRange(click.FloatRange):
    """A range that takes neither infinity nor what is no number, which no bound refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return `value` as a number of the range."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no number of the range {self._describe_range()}.", param, ctx)
        return found


class PlacesCommand(click.Command):
    """A command whose help has `{places}` for the forms of all targets."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help with the forms in it."""
        self.help = full_help(self)
        super().format_help_text(ctx, formatter)


def full_help(command: click.Command) -> str:
    """Return the help of `command`; the places that it names are imported when it is shown, not with the command."""
    text = inspect.cleandoc(command.help or "")
    if "{places}" not in text:
        return text
    from pipelines.publishing.places.targets import FORMS

    return text.replace("{places}", FORMS)


model_option = click.option(
    "--model",
    metavar="MODEL",
    help="Checkpoint folder or hub id org/name[@revision]. Default: the embedded SmolLM2-135M-Instruct.",
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON record and nothing else on standard output."
)
device_option = click.option("--device", metavar="DEVICE", help="cpu or cuda. Default: cuda where there is one.")
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
    help="What models compute in; what is stored stays the same. auto: float32 on a CPU, the model's own on a GPU.",
)
runtime_option = click.option(
    "--runtime",
    type=click.Choice(["transformers", "vllm", "llama.cpp"]),
    default="transformers",
    show_default=True,
    help="What runs the model.",
)
full_option = click.option(
    "--full", is_flag=True, help="Evaluate the whole suite, even when the verdict is shown after a part of it."
)
python_option = click.option(
    "--vllm-python",
    "python",
    metavar="PATH",
    type=PATH,
    help="The Python of an environment that has vLLM. Default: the environment `quantgate env make vllm` makes.",
)


def override_options(command: Command) -> Command:
    """Add --set and --experimental-cpu to `command`, which gets both as `overrides` of the recipe."""

    @set_option
    @click.option(
        "--experimental-cpu",
        is_flag=True,
        help="Let engine auto-gptq run without CUDA, by replacing two names inside it.",
    )
    @functools.wraps(command)
    def with_overrides(*, overrides: tuple[str, ...], experimental_cpu: bool, **others: Any) -> Any:
        added = ("quantize.experimental_cpu=true",) if experimental_cpu else ()
        return command(overrides=(*overrides, *added), **others)

    return with_overrides


def signing_options(command: Command) -> Command:
    """Add the options of signing to `command`, which gets them as a `Signer`, or as None, as `signer`."""

    @click.option("--signing-key", metavar="PEM", type=PATH, help="Sign what is published with this private key.")
    @click.option("--signing-certificate", metavar="PEM", type=PATH, help="The certificate of that key.")
    @click.option(
        "--signing-chain",
        metavar="PEM",
        type=PATH,
        multiple=True,
        help="A certificate between that and the root; may be given again.",
    )
    @click.option("--sign-keyless", is_flag=True, help="Sign with the identity of this CI job, by sigstore.")
    @functools.wraps(command)
    def with_signer(
        *,
        signing_key: Path | None,
        signing_certificate: Path | None,
        signing_chain: tuple[Path, ...],
        sign_keyless: bool,
        **others: Any,
    ) -> Any:
        return command(signer=_signer(signing_key, signing_certificate, signing_chain, sign_keyless), **others)

    return with_signer


def trust_options(command: Command) -> Command:
    """Add the options of whom to trust to `command`, which gets them as a `Trust`, or as None, as `trust`."""

    @click.option("--trust-key", metavar="PEM", type=PATH, help="Ask for a signature by the owner of this public key.")
    @click.option(
        "--trust-root",
        metavar="PEM",
        type=PATH,
        multiple=True,
        help="Ask for a signature by a certificate below this one; may be given again.",
    )
    @click.option("--trust-identity", metavar="WHO", help="Ask for a keyless signature by this identity.")
    @click.option("--trust-issuer", metavar="URL", help="Who vouches for that identity.")
    @functools.wraps(command)
    def with_trust(
        *,
        trust_key: Path | None,
        trust_root: tuple[Path, ...],
        trust_identity: str | None,
        trust_issuer: str | None,
        **others: Any,
    ) -> Any:
        return command(trust=_trust(trust_key, trust_root, trust_identity, trust_issuer), **others)

    return with_trust


def _signer(key: Path | None, certificate: Path | None, chain: tuple[Path, ...], keyless: bool) -> "Signer | None":
    if not (key or certificate or chain or keyless):
        return None
    from pipelines.publishing.signature import Signer

    return _fitting("signing", Signer, key=key, certificate=certificate, chain=chain, keyless=keyless)


def _trust(key: Path | None, roots: tuple[Path, ...], identity: str | None, issuer: str | None) -> "Trust | None":
    if not (key or roots or identity or issuer):
        return None
    from pipelines.publishing.signature import Trust

    return _fitting("trust", Trust, key=key, roots=roots, identity=identity, issuer=issuer)


def _fitting(purpose: str, kind: "type[M]", **values: Any) -> "M":
    """Return a `kind` made of the `values` of options; raise `BadInput` where they do not fit together."""
    from pydantic import ValidationError

    from pipelines.core.errors import bad_input

    try:
        return kind(**values)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise bad_input(f"options for {purpose}", message) from None


def vllm_python(runtime: str, python: Path | None) -> Path | None:
    """Return the absolute path that `--vllm-python` gave, its symbolic links as they are: they are what makes it the
    Python of an environment.

    Raises:
        BadInput: the `runtime` is another one, or there is no such file.
    """
    from pipelines.core.errors import bad_input

    if python is None:
        return None
    if runtime != "vllm":
        raise bad_input(f"--vllm-python {python}", f"is not used by {runtime}", "add --runtime vllm")
    if not python.is_file():
        raise bad_input(f"--vllm-python {python}", "is not a file", "give the environment's bin/python")
    return python.absolute()
