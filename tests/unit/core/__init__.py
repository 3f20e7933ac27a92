"""Tests of `pipelines/core/`."""
