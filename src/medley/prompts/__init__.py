"""Prompts: find the retrieval instruction on dev, and prove that it helps. Candidates in, scored candidates out.

library, generic, edit and gepa propose; scoring grades all of them in one batch and racing drops the hopeless; proof
holds the best against the seed instruction on queries that were not used to choose. Passage prompts stay as they are.
"""
