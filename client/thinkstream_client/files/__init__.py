"""Batches as files: JSON lines in, OpenAI's result lines out."""
