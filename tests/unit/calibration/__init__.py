"""Tests of `pipelines/calibration/`."""
