"""The Ray cluster that a command runs on: its session, and what it can become."""
