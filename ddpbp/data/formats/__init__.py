"""File formats, one file each: a class of rows, and a function that opens a path.

A new format is one file here plus its line in `table.py`, where the format gets its name and the
file names that mean it. The function returns `Contents`: one table with targets among its columns
(csv, npy), or arrays of features and of targets (npz, idx). Columns are picked, types chosen and
values checked by the callers, in `data/sources.py`, for all formats alike. npy, npz and idx are a
header before numbers: they share the reader in `elements.py`. The columns of parquet, hdf5, netcdf
and root have types and names of their own, which `typed.py` is for; their libraries load when a
file is opened. `dialect.py` tells how a text is
written, `lines.py` has the index of its rows; `join.py` makes one data set of several files.
"""
