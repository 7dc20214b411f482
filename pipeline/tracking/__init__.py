"""The record of a run, on disk and in MLflow."""
