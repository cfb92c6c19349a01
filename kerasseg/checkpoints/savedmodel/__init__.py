"""SavedModels as data: read, checked and rebuilt as Keras layers, never run.

    graph      the small graph that all other modules work on
    graphdef   protobuf messages -> graph: functions inlined, constants decoded, sizes bounded
    allowed    which operations may occur in which part of a file
    plausible  arguments that are out of range
    bundle     the index of a variables file, checked against the size of the file
    variables  which variable has which name and which key in the variables file
    decisions  a final argmax or threshold is removed
    fuse       groups of operations that were one layer -> one node
    rebuild    graph -> Keras model; layers and shaping hold what each operation becomes
    parity     both networks on the same random slice

Only `open` imports TensorFlow; the protobuf messages are handed to the other modules.
"""
