"""Tests of `pipelines/checkpoint/`."""
