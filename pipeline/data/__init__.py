"""From a shard set to the batches of a run: order, dataset, reader, stream."""
