"""Tests of `pipelines/cli/`."""
