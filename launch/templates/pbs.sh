#!/bin/bash
#PBS -N {{job_name}}
#PBS -l select={{nodes}}:ncpus={{ppn}}:mpiprocs={{ppn}}
#PBS -l walltime={{time}}
#PBS -q {{queue}}
#PBS -A {{account}}
#PBS -j oe
#PBS {{directives}}

cd "$PBS_O_WORKDIR" || exit 2
{{setup}}

# The launcher reads the hosts from PBS. A signal {{grace}} s before the limit lets it ask the ranks
# for a checkpoint; they end with code 75, and the job is submitted again.
timeout --foreground --preserve-status --signal=USR1 {{run_seconds}} {{launch}}
code=$?
if [ $code -eq 75 ]; then qsub {{script}}; fi
exit $code
