"""Tests of `pipelines/reporting/`."""
