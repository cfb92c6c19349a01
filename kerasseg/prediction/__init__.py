"""Masks for new slices: files in, masks in the same geometry out.

networks   what answers: run, checkpoint or several, with the run's size, grey levels and rule
units      what is asked: pictures, volumes and series, and where their masks go
reading    from files to what the network takes, a slice at a time
flow       reading, network and writing at the same time, in bounded memory
frames     from masks of slices to the file that lies where the input lay
journal    what is done, so that an interrupted prediction goes on
files      all of it: `predict_files`
arrays     the same for arrays: `predict_masks`
"""
