"""Evaluation of a model: predictions, metrics and probes."""
