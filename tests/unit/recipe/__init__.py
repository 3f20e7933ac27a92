"""Tests of `pipelines/recipe/`."""
