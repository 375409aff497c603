#!/bin/bash
#BSUB -J {{job_name}}
#BSUB -n {{n}}
#BSUB -R "span[ptile={{ppn}}]"
#BSUB -W {{time_minutes}}
#BSUB -q {{queue}}
#BSUB -P {{account}}
#BSUB -o %J.log
#BSUB -r
#BSUB -Q "75"
#BSUB -wa USR1
#BSUB -wt {{grace_minutes}}
#BSUB {{directives}}

{{setup}}

# The launcher reads the hosts from LSF. A signal {{grace_minutes}} min before the limit lets it ask the
# ranks for a checkpoint; they end with code 75, for which LSF requeues the job (-Q).
exec {{launch}}
