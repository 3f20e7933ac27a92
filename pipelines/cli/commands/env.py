"""`quantgate env`: the environments of runtimes and engines."""

import click

from pipelines.cli.options import json_option
from pipelines.cli.output import print_json


@click.group("env")
def env() -> None:
    """Environments of runtimes and engines that cannot share ours."""


@env.command("list")
@json_option
def env_list(as_json: bool) -> None:
    """List the environments, and where each that is made has its Python or its programs."""
    from pipelines.cli.tables.lists import show_facts
    from pipelines.environments import isolated

    found = {name: isolated.find(name) for name in isolated.names()}
    if as_json:
        return print_json([{"name": name, "place": str(place) if place else None} for name, place in found.items()])
    show_facts("environments", {name: str(place) if place else "not made" for name, place in found.items()})


@env.command("make")
@click.argument("name")
def env_make(name: str) -> None:
    """Make the environment NAME (minutes, for vLLM gigabytes, once); prints its Python or its folder of programs."""
    from pipelines.environments import isolated

    click.echo(isolated.make(name))


@env.command("check")
@click.argument("name")
def env_check(name: str) -> None:
    """Start the runtime of the environment NAME and print its version."""
    from pipelines.environments import isolated

    click.echo(isolated.check(name))


@env.command("remove")
@click.argument("name")
def env_remove(name: str) -> None:
    """Delete the environment NAME."""
    from pipelines.environments import isolated

    isolated.remove(name)
