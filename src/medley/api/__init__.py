"""The commands as functions: what `medley mine`, `train`, `merge`, `search-merge`, `evaluate` and `compare` do.

A file for each: the function, and its result as a frozen value with `to_frame()`. The command line calls these and
prints; `medley.mine` and the others are these.
"""
