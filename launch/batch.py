"""A job script for Slurm, PBS or LSF, filled into a template; or an MPIJob. Submitted, or shown.

A template is a script with `{{name}}` in the place of a value. A line with a value that is a list
is repeated for each item, a line with an absent value is left out.
"""

import argparse
import math
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import mpijob, train_command
from .errors import LaunchError
from .hosts import output_of
from .options import inner_words
from .values import read, shown

TEMPLATES = Path(__file__).with_name("templates")
SUFFIX = {"slurm": ".sbatch", "pbs": ".pbs", "lsf": ".lsf", "kubernetes": ".yaml"}
PLACE = re.compile(r"\{\{(\w+)\}\}")
SUBMIT = {
    "slurm": ["sbatch"],
    "pbs": ["qsub"],
    "lsf": ["bsub"],
    "kubernetes": ["kubectl", "apply", "-f", "-"],
}


def submit(options: argparse.Namespace, python: Sequence[str]) -> str:
    """Write a job into the working folder and submit it; a dry run only returns it.

    Parameters
    ----------
    options : argparse.Namespace
        The options of the command line.
    python : sequence of str
        The words that run Python here, to check with ddpbp that the job can run.

    Returns
    -------
    message : str
        The answer of the batch system, or the job itself.

    Raises
    ------
    LaunchError
        Names the option that does not fit, or why the job cannot run or be submitted.
    """
    if options.hosts or options.hostfile or options.simulate:
        raise LaunchError(
            "--hosts, --hostfile and --simulate do not go with a batch job: its system names hosts"
        )
    options.ppn = options.ppn or -(-(options.n or 1) // options.nodes)
    ranks = options.n or options.nodes * options.ppn
    if ranks > options.nodes * options.ppn:
        raise LaunchError(
            f"-n {ranks}: more than --nodes {options.nodes} times --ppn {options.ppn}"
        )
    train_command.check(python, options.arguments, ranks)
    options.requeue = options.requeue is not False
    arguments = train_command.resumed(options.arguments) if options.requeue else options.arguments
    if options.requeue and "--overwrite" in options.arguments:
        raise LaunchError(
            "--overwrite does not go with --requeue: a job that is put back must continue its run; "
            "remove the old run folder first, or add --no-requeue before train"
        )
    if options.batch == "kubernetes":
        where = ["--hostfile", mpijob.HOSTFILE]
        launch = ["python", "-m", "ddpbp", "launch", *where, *inner_words(options), *arguments]
        text = mpijob.to_yaml(mpijob.manifest(options, launch))
    else:
        remote_python = "python" if options.setup or options.module else options.python
        launch = [remote_python, "-m", "ddpbp", "launch", *inner_words(options), *arguments]
        text = script(options, launch)
    if options.dry_run:
        return text
    line = SUBMIT[options.batch]
    if not shutil.which(line[0]):
        raise LaunchError(f"{line[0]} is not on PATH: submit from a machine of the cluster")
    file = Path(options.job_name + SUFFIX[options.batch])
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LaunchError(f"{file} cannot be written: {error.strerror}") from None
    return f"{file} is submitted: {output_of(line, text).strip()}\n"


def fill(template: str, values: Mapping[str, Sequence[str]], where: str) -> str:
    """Put the values into a template; `where` names it in messages.

    Raises
    ------
    LaunchError
        Names a value of the template that does not exist.
    """
    lines = []
    for number, line in enumerate(template.splitlines(), 1):
        parts = PLACE.split(line)  # text, name, text, name, text
        names = parts[1::2]
        for name in names:
            if name not in values:
                place, allowed = "{{" + shown(name) + "}}", ", ".join(values)
                raise LaunchError(f"{where}, line {number}: {place}: allowed: {allowed}")
        for copy in range(math.prod(len(values[name]) for name in names)):
            one = {name: values[name][copy % len(values[name])] for name in names}
            # In one pass: braces inside a value stay what they are.
            lines.append("".join(one[p] if i % 2 else p for i, p in enumerate(parts)))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def script(options: argparse.Namespace, launch: Sequence[str]) -> str:
    """Return the script of a batch job.

    Parameters
    ----------
    options : argparse.Namespace
        The options of the command line.
    launch : sequence of str
        The launcher's own command inside the job.

    Raises
    ------
    LaunchError
        Names the option that does not fit, or the fault in the template.
    """
    file = options.template or TEMPLATES / f"{options.batch}.sh"
    template = read(file, f"--template {shown(file)}")
    limit = options.time
    if limit <= options.grace:
        raise LaunchError(f"--time is {limit} s, not longer than --grace {options.grace} s")
    values = {
        "job_name": options.job_name,
        "nodes": options.nodes,
        "ppn": options.ppn,
        "n": options.n or options.nodes * options.ppn,
        "time": f"{limit // 3600}:{limit // 60 % 60:02}:{limit % 60:02}",
        "time_minutes": math.ceil(limit / 60),
        "run_seconds": limit - options.grace,
        "grace": options.grace,
        "grace_minutes": math.ceil(options.grace / 60),
        "requeue": "requeue" if options.requeue else "no-requeue",
        "queue": options.queue,
        "account": options.account,
        "script": shlex.quote(options.job_name + SUFFIX[options.batch]),
        "launch": shlex.join(launch),
    }
    lists = {name: [str(value)] if value is not None else [] for name, value in values.items()}
    lists["directives"] = options.directive or []
    modules = [f"module load {shlex.quote(name)}" for name in options.module or []]
    lists["setup"] = modules + (options.setup or [])
    return fill(template, lists, str(file))
