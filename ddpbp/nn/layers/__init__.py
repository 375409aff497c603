"""Layers: what stands between aˡ⁻¹ and aˡ.

layer.py    the interface
dense.py    z = W a + b
table.py    their names: a new layer is one file here and one entry there
"""
