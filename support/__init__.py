"""What every package stands on: settings, files, secrets, the console, command lines and pages."""
