"""Training of a run on Ray Train."""
