"""Evaluation: per-query scores of a retriever or of BM25 (scores.py) and paired tests between them (compare.py)."""
