"""Tests of `pipelines/flow/`."""
