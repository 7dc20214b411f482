"""From a model and images to predictions, metrics and probes."""
