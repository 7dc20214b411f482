"""The training of a run on Ray Train."""
