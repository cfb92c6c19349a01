"""SavedModels read as data, checked and rebuilt as Keras layers, without running them.

    graph      the graph representation that the other modules work on
    graphdef   protobuf messages -> graph: functions inlined, constants decoded, sizes limited
    allowed    which operations may occur in which part of a file
    plausible  checks of argument ranges
    bundle     the index of a variables file, checked against the file size
    variables  names of variables and their keys in the variables file
    decisions  removal of a final argmax or threshold
    fuse       groups of operations that were one layer -> one node
    rebuild    graph -> Keras model; `layers` and `shaping` translate the operations
    parity     comparison of both networks on the same random slice

Only `open` imports TensorFlow; the other modules receive protobuf messages.
"""
