"""Closed-form problems, data harnesses and contract suites for tests, experiments and extensions."""
