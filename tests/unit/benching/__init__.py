"""Tests of `pipelines/benching/`."""
