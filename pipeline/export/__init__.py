"""Export of a checkpoint to other libraries, checked there."""
