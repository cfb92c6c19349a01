"""The network as a graph: blocks, freezing, fitting to the task, folding, inspection and drawing."""
