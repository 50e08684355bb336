"""Retraining when the data change, and promotion of what is better: `flow` is the whole story, `by_hand` the person's.

`tlray.runs.champion` says which export is in use; nothing else here is needed to predict.
"""
