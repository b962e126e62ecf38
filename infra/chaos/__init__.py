"""Breaks the whole service on purpose, for minutes, and counts what its readers lost."""
