"""Run directories: configuration, state in two generations, history, best weights."""
