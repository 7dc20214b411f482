"""Clusters: bring one up, run commands of this project on it as jobs, take it down."""
