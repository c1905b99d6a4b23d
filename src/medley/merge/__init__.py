"""Merging experts into one retriever: exact adapter merges, mergekit's methods, search, gated export."""
