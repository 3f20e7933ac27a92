"""Tests of `pipelines/runtimes/`."""
