"""Evaluation: per-query scores of a retriever or of BM25 (scores.py) and tables of them (table.py)."""
