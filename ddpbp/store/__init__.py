"""The files of a run, each written whole or not at all and verified when it is read.

files              writing and reading a file of ours; format numbers
tensors            safetensors: writing and reading
run_folder         which files a run folder holds; beginning a run, metrics, faults, the result
lock               one job at a time in a run folder
model_file         a trained network and all that is needed to use it
checkpoint         the state that a run resumes from: written, verified, searched for
checkpoint_writer  writing beside the training; which checkpoints are kept

May import base, nn, data and config. A new field of a file goes into its class here (`StoredModel`,
`State`); if an older ddpbp would misread the file, raise its FORMAT, say so in the module's
docstring, keep reading the format before, and add a small file of each to tests/data.
"""
