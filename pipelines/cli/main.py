"""The `quantgate` command: its subcommands, and what becomes of errors.

`exit_codes.EXITS` says what the exit codes mean. Records go to standard output, progress and errors to standard error.
"""

from typing import Any

import click

from pipelines.cli.commands.bench import bench
from pipelines.cli.commands.env import env
from pipelines.cli.commands.plan import plan
from pipelines.cli.commands.published import publish, pull, verify
from pipelines.cli.commands.recipes import list_, show, validate
from pipelines.cli.commands.recommend import recommend
from pipelines.cli.commands.release import release
from pipelines.cli.commands.repair import repair
from pipelines.cli.commands.reports import compare, report
from pipelines.cli.commands.run import run
from pipelines.cli.commands.serve_config import serve_config
from pipelines.cli.commands.stages import evaluate, gate, quantize
from pipelines.cli.output import complain, leave_standard_output
from pipelines.core.errors import QuantgateError
from pipelines.core.exit_codes import EXITS, SEVERAL

COMMANDS = (
    list_, show, validate, recommend, plan, run, release, quantize, evaluate, gate, compare, report, repair, publish,
    pull, verify, serve_config, bench, env,
)  # fmt: skip
"""Names of the subcommands, in the order of docs/cli.md."""
HELP = "Quantize a checkpoint, prove that it is still good, and publish it only then."
EXIT_HELP = "\n".join(["\b", "Exit codes:", *(f"  {code} {meaning}" for code, meaning in EXITS.items()), SEVERAL])


class Commands(click.Group):
    """A group of commands that turns our errors into one message and an exit code; a traceback means a bug."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand that `ctx` asks for."""
        try:
            return super().invoke(ctx)
        except QuantgateError as error:
            complain(str(error))
            ctx.exit(error.exit_code)
        except OSError as error:  # a disk that is full or read-only, a folder that is not ours, a reader that has gone
            what = f"{error.filename}: " if error.filename else ""
            complain(f"{what}{error.strerror or error}")
            leave_standard_output()
            ctx.exit(1)


@click.group(
    cls=Commands,
    commands=COMMANDS,
    help=f"{HELP}\n\n{EXIT_HELP}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="quantgate", prog_name="quantgate")
def main() -> None:
    """Run the subcommand that the command line names."""
