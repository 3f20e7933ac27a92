"""Tests of `pipelines/evaluation/`."""
