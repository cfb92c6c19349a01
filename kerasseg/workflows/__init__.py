"""Implementation of the commands, one module each, shared by the command line and the public functions."""
