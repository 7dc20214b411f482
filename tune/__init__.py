"""Search over many short runs for the best settings, such as warm-up and learning rate."""
