"""Settings of a run, the presets, and the expected cost."""
