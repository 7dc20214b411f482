"""What every command shares: console, files, secrets."""
