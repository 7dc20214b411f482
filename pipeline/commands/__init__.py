"""The commands of `python -m pipeline`, as dataclasses for `support.command`."""
