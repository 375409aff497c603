"""Predict a step on other numbers of ranks and hosts from measurements on these.

machine  the measured quantities
measure  measuring them
predict  from the quantities to the seconds of a step
report   the plan of a configuration, its advice, and its text
"""
