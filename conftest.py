"""Fixtures for tests, and names for the examples in docstrings."""

pytest_plugins = ["tests.helpers.fixtures", "tests.helpers.runs"]
