"""Tests of `pipelines/planning/`."""
