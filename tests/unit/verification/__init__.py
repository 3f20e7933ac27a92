"""Tests of `pipelines/verification/`."""
