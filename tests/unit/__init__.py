"""Tests of one package each, as the packages lie in pipelines/."""
