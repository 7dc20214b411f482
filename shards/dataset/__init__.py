"""The format of shard sets on disk and access to their storage: all that training reads."""
