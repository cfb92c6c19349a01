"""What each command does: one module a command, called by the command line and by the public functions alike."""
