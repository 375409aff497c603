"""The settings of a run: their types and meaning, their sources, their checks.

settings  the structures: each setting with its type, limits, meaning and default
find      file, environment, key=value, flags; messages that name the place (imports no NumPy)
check     names of the tables, settings that exclude each other
read      `resolve` and `parse`: find, choose the kernel, check
write     dictionaries, TOML, JSON schema, fingerprint, differences

It may import `base` and the tables of `nn`. To add a setting, add a field with a docstring in
`settings`, marked `HARMLESS` if no number depends on it. A rule that its type cannot express goes
to `check`.
"""
