#!/bin/bash
#SBATCH --job-name={{job_name}}
#SBATCH --nodes={{nodes}}
#SBATCH --ntasks-per-node={{ppn}}
#SBATCH --time={{time}}
#SBATCH --partition={{queue}}
#SBATCH --account={{account}}
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --{{requeue}}
#SBATCH --signal=B:USR1@{{grace}}
#SBATCH {{directives}}

{{setup}}

# The launcher reads the hosts from Slurm. {{grace}} s before the limit, or when the job is preempted,
# it asks the ranks for a checkpoint; they end with code 75, and --requeue puts the job back.
exec {{launch}}
