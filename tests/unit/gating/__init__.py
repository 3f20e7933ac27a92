"""Tests of `pipelines/gating/`."""
