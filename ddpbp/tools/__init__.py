"""The tools around a configuration or a trained model.

apply           scores or predicts the rows of a file with a stored model
data_info       describes a source of data, column by column
predictions     writes predictions part by part: CSV, .npy, Parquet
gradient_check  checks the gradient by finite differences, layer by layer
dry_run         describes a run: size, memory, leaves per rank, steps
bench           measures speed, and where the time goes
plan/           predicts steps on other ranks and hosts from measurements on these
launcher        runs the launcher as a process
doctor/         checks whether these ranks can train: one table, each line with its fix

May import every room below, the run room included. A tool is one file, or a folder if it is large;
its command stands in cli. A check of the doctor is a function in doctor/ and a line in its table.
"""
