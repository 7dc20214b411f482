"""What a shard set is on disk, and where it lies: all that training reads."""
