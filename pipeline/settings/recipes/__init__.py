"""Published recipes as data: one file for each source."""
