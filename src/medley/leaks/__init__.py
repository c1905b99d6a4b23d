"""The leak check: training texts held against dev and test collections.

words.py hashes texts, index.py finds (near) duplicates among them, find.py does so for training pairs and collections,
explain.py says what a finding means.
"""
