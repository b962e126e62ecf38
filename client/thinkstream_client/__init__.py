"""The client of thinkstream: what users install."""
