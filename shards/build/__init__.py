"""From archives, folders and other shards to a shard set."""
