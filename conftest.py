"""Fixtures for tests, and names for the examples in docstrings."""

pytest_plugins = ["tests.helpers.fixtures", "tests.helpers.runs"]

# examples are looked for in the package only: what these hold is run by tests, or by hand
collect_ignore_glob = ["tests/helpers/*", "tests/benchmarks/*", "tests/report/recompute.py"]
