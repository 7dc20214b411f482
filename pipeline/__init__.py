"""One training run on Ray: stream, train, checkpoint, evaluate, record."""
