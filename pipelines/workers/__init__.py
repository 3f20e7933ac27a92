"""What runs in the environments of other projects (`pipelines.environments`); nothing in here imports anything of ours.

`python workers MODULE` serves what MODULE's `commands` returns. Each module may import what its environment has.
"""
