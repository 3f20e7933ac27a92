"""Tests of `pipelines/quantization/`."""
