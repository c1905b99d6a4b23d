"""The guard against false negatives: settings, signals, a judge, and what becomes of each negative."""
