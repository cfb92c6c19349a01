"""Inference graphs as data: read, judged and rebuilt as Keras layers, never run.

    graph      the small graph that all other modules work on
    graphdef   protobuf messages -> graph: function bodies inlined, constants decoded, everything bounded
    allowed    which operations may stand where in a file
    plausible  arguments that cannot be meant
    bundle     the index of a variables file, checked against the size of the file
    variables  which variable has which name and which key in the variables file
    fuse       groups of operations that were one layer -> one node (normalisations, activations, upsampling)
    rebuild    graph -> Keras model; layers and shaping hold what each operation becomes
    comparing  both networks on the same random slice

None of these imports TensorFlow: the protobuf messages are handed in by `kerasseg.checkpoints.savedmodel.open`.
"""
