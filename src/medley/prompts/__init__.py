"""Prompts: choose the retrieval instruction on dev. Candidates in, scored candidates and a choice out."""
