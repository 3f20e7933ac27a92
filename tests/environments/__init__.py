"""Tests that run other projects' programs, in environments of their own."""
