"""The calibrated methods, one module each, and the arithmetic that they share. They see tensors and modules of the
model in memory, and neither files nor plans.

A new method is a module here that returns a `CalibratedMethod`, an entry in the union of `pipelines.recipe.methods`,
and a line of `table.choose_method`.
"""
