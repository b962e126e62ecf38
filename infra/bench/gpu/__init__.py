"""What the engine does on a GPU, from the same code that the actor runs."""
