"""Archives to verified WebDataset shards, and the order in which their samples are read."""
