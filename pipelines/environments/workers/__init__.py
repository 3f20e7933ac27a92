"""The programs that run in the environments of other projects (`pipelines.environments.isolated`).

Nothing here imports our code.

`python workers MODULE` serves what MODULE's `commands` returns. Each module may import what its environment has.
"""
