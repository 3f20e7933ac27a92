"""Tests of `pipelines/formats/`."""
