"""The launcher: start ddpbp on several processes, here, on hosts, or as a batch job.

launch.py         runs this package as a file, also in a checkout that is not installed
start.py          from the command line to an exit code: start the ranks, restart them
options.py        the command line, and launch.toml
values.py         what each value may be before it enters a command line, a script or a YAML
train_command.py  what the launcher knows of ddpbp: its commands, resuming, its faults
hosts.py          hosts from options, a file or the batch system; ranks dealt to them; probing them
probe.py          runs on each host (standalone): its cores, missing paths, what an end left over
mpi.py            the MPI library of a Python, the mpiexec that fits it, its command line
rank.py           runs around each rank (standalone): binds it to cores, labels its lines and pulse
supervise.py      one start of the ranks: shows their lines, forwards signals, how they ended
watch.py          whether the ranks have met, and whether any of them moves
explain.py        why a job failed, in one message
batch.py          a job script for Slurm, PBS or LSF, filled into a template of `templates/`
mpijob.py         the same job for Kubernetes
errors.py         the exceptions, each one message and an exit code, and how it prints

Beside the code: `templates/` and `examples/` of job scripts, `ssh/` for the image, ddpbp.def for
Apptainer.

The launcher knows nothing of training: it imports no ddpbp and ddpbp does not import it. Each runs
the other as a process. A checkout has it as `launch`, an installation as `ddpbp.launch`; so imports
here are relative.

To add a batch system: a template, an entry in `batch.SUFFIX` and `batch.SUBMIT`, a name in
`options`, and how to read its allocation in `hosts.allocation`. To add an MPI family: an entry in
`mpi.FAMILIES`, and its words in `mpi.command`.
"""
