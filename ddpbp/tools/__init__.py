"""What else a configuration or a trained model can be asked.

apply           score or predict the rows of a file with a stored model
gradient_check  is the gradient right? finite differences, layer by layer
dry_run         what would a run be: size, memory, leaves per rank
bench           how fast is it, and where does the time go
plan/           what would more ranks and hosts bring: measured here, predicted there
doctor/         can these ranks train? one table of checks, each with its fix

May import every room below, the run room included. A tool is one file, or a folder if it is large;
its command stands in cli. A check of the doctor is a function in doctor/ and a line in its table.
"""
