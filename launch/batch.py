"""Batch jobs: one description, filled into the template of Slurm, PBS or LSF, or an MPIJob.

A template is a script with `{{name}}` where a value goes. A line of several values is repeated, a
line without a value is left out.
"""

import argparse
import math
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import mpijob
import options
import training
from hosts import LaunchError, ask

TEMPLATES = Path(__file__).with_name("templates")
SUFFIX = {"slurm": ".sbatch", "pbs": ".pbs", "lsf": ".lsf", "kubernetes": ".yaml"}
SUBMIT = {
    "slurm": ["sbatch"],
    "pbs": ["qsub"],
    "lsf": ["bsub"],
    "kubernetes": ["kubectl", "apply", "-f", "-"],
}


def submit(given: argparse.Namespace, python: Sequence[str]) -> str:
    """Write a job into this folder and hand it to its system, or (a dry run) only show it.

    Parameters
    ----------
    given : argparse.Namespace
        The options.
    python : sequence of str
        How ddpbp is asked, here, whether the job can run.

    Returns
    -------
    said : str
        What the batch system said, or the job.
    """
    if given.hosts or given.hostfile or given.simulate:
        raise LaunchError("--hosts, --hostfile and --simulate do not go with a batch job")
    given.ppn = given.ppn or -(-(given.n or 1) // given.nodes)
    ranks = given.n or given.nodes * given.ppn
    if ranks > given.nodes * given.ppn:
        raise LaunchError(f"-n {ranks}: more than --nodes {given.nodes} times --ppn {given.ppn}")
    training.check(python, given.arguments, ranks)
    given.requeue = given.requeue is not False
    arguments = training.resumed(given.arguments) if given.requeue else given.arguments
    if given.requeue and "--overwrite" in given.arguments:
        raise LaunchError(
            "--overwrite would throw the checkpoint away when the job is requeued; remove the old "
            "run folder first, or add --no-requeue before train"
        )
    if given.batch == "kubernetes":
        where = ["--hostfile", mpijob.HOSTFILE]
        launch = ["python", "-m", "ddpbp", "launch", *where, *options.inner(given), *arguments]
        text = mpijob.to_yaml(mpijob.manifest(given, launch))
    else:
        python_there = "python" if given.setup or given.module else given.python
        launch = [python_there, "-m", "ddpbp", "launch", *options.inner(given), *arguments]
        text = script(given, launch)
    if given.dry_run:
        return text
    line = SUBMIT[given.batch]
    if not shutil.which(line[0]):
        raise LaunchError(f"{line[0]} is not on PATH: submit from a machine of the cluster")
    file = Path(given.job_name + SUFFIX[given.batch])
    file.write_text(text)
    return f"{file} is submitted: {ask(line, text).strip()}\n"


def fill(template: str, values: Mapping[str, Sequence[str]], where: str) -> str:
    """Put the values into a template.

    Raises
    ------
    LaunchError
        Names a value that does not exist.
    """
    lines = []
    for number, line in enumerate(template.splitlines(), 1):
        names = re.findall(r"\{\{(\w+)\}\}", line)
        for name in names:
            if name not in values:
                allowed = ", ".join(values)
                raise LaunchError(f"{where}, line {number}: {{{{{name}}}}}: allowed: {allowed}")
        copies = math.prod(len(values[name]) for name in names)
        for copy in range(copies):
            text = line
            for name in names:
                one = values[name][copy % len(values[name])]
                text = text.replace("{{" + name + "}}", one)
            lines.append(text)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def script(given: argparse.Namespace, launch: Sequence[str]) -> str:
    """Return the script of a batch job.

    Parameters
    ----------
    given : argparse.Namespace
        The options.
    launch : sequence of str
        The launcher's own command inside the job.
    """
    file = given.template or TEMPLATES / f"{given.batch}.sh"
    try:
        template = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"--template {file}: {error}") from None
    limit = given.time
    if limit <= given.grace:
        raise LaunchError(f"--time is {limit} s, not longer than --grace {given.grace}")
    values = {
        "job_name": given.job_name,
        "nodes": given.nodes,
        "ppn": given.ppn,
        "n": given.n or given.nodes * given.ppn,
        "time": f"{limit // 3600}:{limit // 60 % 60:02}:{limit % 60:02}",
        "time_minutes": math.ceil(limit / 60),
        "run_seconds": limit - given.grace,
        "grace": given.grace,
        "grace_minutes": math.ceil(given.grace / 60),
        "requeue": "requeue" if given.requeue else "no-requeue",
        "queue": given.queue,
        "account": given.account,
        "script": shlex.quote(given.job_name + SUFFIX[given.batch]),
        "launch": shlex.join(launch),
    }
    lists = {name: [str(value)] if value is not None else [] for name, value in values.items()}
    lists["directives"] = given.directive or []
    lists["setup"] = [f"module load {m}" for m in given.module or []] + (given.setup or [])
    return fill(template, lists, str(file))
