"""What a run is told: configuration, presets, cost."""
