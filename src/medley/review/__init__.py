"""The review sheet: a sample of negatives that a domain expert accepts or flips, and what comes of it.

pairs -> sheet (a seeded sample of items) -> page (HTML) and table (CSV) -> experts -> tables (read back) -> agreement
(what nobody disputes) -> decisions.
"""
