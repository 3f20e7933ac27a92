"""`python -m pipelines.cli`: the command, from a checkout."""

from pipelines.cli.main import main

main(prog_name="quantgate")
