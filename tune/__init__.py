"""Many runs: the search for warm-up length and learning rate."""
