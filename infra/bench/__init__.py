"""Benchmarks: each figure beside a rival's or a limit's, taken in the same run."""
