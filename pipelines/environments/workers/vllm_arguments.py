"""vLLM's argument parser, for `pipelines.serving.checks`: what `vllm serve` would make of a config."""

import json
import os
from collections.abc import Callable
from typing import Any

Report = Callable[[int, int, str], None]


def parse(words: list[str], names: list[str]) -> dict[str, Any]:
    """Return the values that `vllm` reads for the arguments `names` from the command line `words`, and its version.

    Raises:
        ValueError: it refuses the command line.
    """
    import vllm  # type: ignore[import-not-found]  # of another environment
    from vllm.entrypoints.cli.serve import ServeSubcommand  # type: ignore[import-not-found]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> None:  # argparse's own would end the process
            raise ValueError(message)

    parser = Parser()
    ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser", parser_class=Parser))
    found = vars(parser.parse_args(words))
    return {"version": vllm.__version__, "values": {name: _plain(found[name]) for name in names}}


def _plain(value: Any) -> Any:
    """Return what JSON can hold of an argument."""
    return json.loads(json.dumps(value, default=str))


def commands(_: Report) -> dict[str, Callable[..., Any]]:
    """Return the requests that it answers: name → function."""
    os.environ.update({"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"})
    return {"parse": parse}
