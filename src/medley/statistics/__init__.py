"""Statistics of paired per-query scores: what evaluation, reports and the regression guard all need.

paired.py resamples, compare.py compares two models, power.py says what a test set can show, family.py corrects a whole
report's comparisons together.
"""
