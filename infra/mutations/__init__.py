"""A gate for the functions in Redis: each of their checks is removed in turn, and a test has to notice."""
