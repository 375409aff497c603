"""The command line: parse, call, print, exit code.

main      the group of commands, and `run`, which every process of a run enters
process   the ranks of a command, and how it ends: one exit code, one message
options   the options that several commands share, each group as one argument
train, apply, check, measure, config, data   one family of commands each

It may import everything but `__main__`; heavy modules only inside the commands, because NumPy must
not be loaded before the settings have chosen its BLAS kernel. To add a command, write it in its
family and name it in `main.FAMILIES`.
"""
