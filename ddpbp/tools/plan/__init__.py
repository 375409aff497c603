"""What a step would take on other numbers of ranks and hosts: measured here, predicted there.

machine  what was measured: the quantities of the model
measure  how they are measured
predict  the model: from the quantities to the seconds of a step
report   the plan of a configuration, its advice, and its text
"""
