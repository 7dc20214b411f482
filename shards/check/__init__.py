"""Index, verify and describe shard sets."""
