"""SavedModels read as data, checked and rebuilt as Keras layers, without running them.

    graph      the graph representation that the other modules work on
    graphdef   protobuf messages -> graph: functions inlined, constants decoded, sizes limited
    allowed    which operations may occur in which part of a file, and with which arguments
    bundle     the index of a variables file, checked against the file size
    signatures the signature, variables, writer and assets
    fuse       groups of operations that were one layer -> one node; removal of a final argmax or threshold
    rebuild    graph -> Keras model; `layers` and `shaping` translate the operations
    parity     comparison of both networks on the same random slice

TensorFlow is imported only by `open`, `bundle` and `messages`; the other modules receive plain values or messages.
"""

NETWORK_SIGNATURE = "kerasseg_network"
"""Signature of kerasseg's exports with only the network; `serving_default` maps stored slices to masks."""
