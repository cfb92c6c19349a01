"""Networks as graphs: blocks, freezing, fitting to the task, folding, inspection and drawing."""
