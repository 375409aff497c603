"""Layers: the step from aˡ⁻¹ to aˡ, and back.

layer.py    the interface
dense.py    z = W a + b
table.py    their names: a new layer is one file here and one entry there
"""
