"""Tests of `pipelines/publishing/`."""
