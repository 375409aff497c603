"""Metrics: what a trained model is judged by.

metric          one entry: its tasks, its sums over a leaf, and its value from the sums
classification  accuracy, exact_match
regression      rmse, mae, r2
table           all entries in the order of the report, and the two loops over them

A metric is added as a `Metric` in the file of its family and listed at the end of that file; a
new family is one file and its line in `table`. Imports `base` and `errors` only.
"""
