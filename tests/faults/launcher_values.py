"""Hostile values in every field of the launcher: no shell, no ssh option, no YAML key comes of one.

    python tests/faults/launcher_values.py --count 200 --seed 0

Each value stands once in each field of a job for Slurm, PBS, LSF, Kubernetes and hosts reached by
ssh, on the command line or in launch.toml. Either it is refused with one message and exit code 2,
and nothing is written; or it stands exactly where a harmless value would: the script of the job has
the same lines, passes `bash -n`, and gives the programs that it starts the same words (fake sbatch,
qsub, bsub, ssh, mpiexec and Python record them); the YAML is read back as the same object. No case
may make the file `canary`, which the values try to. Hostfiles and the variables of batch systems
are fuzzed beside. One line for each system at the end; exit code 1 if something failed.
"""

import argparse
import contextlib
import io
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from launch import hosts, mpi, start
from launch.errors import LaunchError

FRAGMENTS = [
    *("'", '"', "`touch canary`", "$(touch canary)", "touch canary", "; touch canary; ", "&", "|"),
    *("&&", "\n", "\r\n", "\r", "\t", " ", "#", "{{launch}}", "{{n}}", "{{setup}}", "${IFS}", "\\"),
    *("-", "--", "-oProxyCommand=touch canary", "-F", "x: y", ": ", "- "),
    *("&a", "*a", "%x", "%j", "é", "²", "٣", "\u2028", "\u202e", "\x00", "\x1b[2J", "\x7f"),
    *("a", "h1", ":4", ",", "..", "/", "=", "@", "~", "*", "<", ">", "(", ")", "<<EOF", "0", "😀"),
    *("#SBATCH --wrap=x", "\n#SBATCH --wrap=x\n", "\ntouch canary\n", "\nkind: Pod\n", "!", "null"),
    *("\ufeff", "\udcff", "!!python/name:os.system"),
]
WHOLE = [
    *("", "-", "--", ".", "..", "../x", "/", "it's", "it's $(touch canary)", "h1", "h-1.x", "a b"),
    *("9" * 5000, "-1", "²", "٣", "1_0", "0x10", "1e3", " 4", "4", "0", "nan", "true"),
    *("-Fcfg", "-oProxyCommand=touch canary", "yes", "~", "1:00:00", "٣:00:00", "a\\", "'"),
    *("module/1.0+cuda", "project_7", "part1,part2", "queue@server", "docker://x/y:1", "5Gi", ":"),
    *("cat <<E", "a" * 70_000),
]
HARMLESS = "placeholder9"
NUMBERS = ("n", "ppn", "nodes", "time", "grace", "max_restarts", "meet_seconds")
EVERYWHERE = ("ssh", "python", "container", "mpi_args", "log_dir", "argument")
OF_A_JOB = (*EVERYWHERE, "job_name", "queue", "account", "module", "setup", "directive", "template")
SYSTEMS = {
    "slurm": (*OF_A_JOB, *NUMBERS),
    "pbs": (*OF_A_JOB, *NUMBERS),
    "lsf": (*OF_A_JOB, *NUMBERS),
    "kubernetes": (*OF_A_JOB[:-1], "image", "memory", "shm_size", "volume", *NUMBERS),
    "ssh": (*EVERYWHERE, "hosts", "hostfile", "lines of a hostfile", *NUMBERS[:2]),
}
SUFFIX = {"slurm": ".sbatch", "pbs": ".pbs", "lsf": ".lsf"}
USUAL = {"memory": "5Gi", "shm_size": "5Gi", "volume": "claim9:/path9", "time": "2:00:00"}
REPEATABLE = ("module", "setup", "directive")
RECORD = '#!/bin/bash\nprintf "%s\\0" "$#" "${0##*/}" "$@" >> "$RECORD"\n'
PROGRAMS = {
    "python": RECORD
    + """[ "$1" = -IS ] && echo '{"cores": 4, "missing": []}' && exit\nexit 75\n""",
    "module": RECORD,
    "sbatch": "#!/bin/sh\ncat > submitted\n",
    "bsub": "#!/bin/sh\ncat > submitted\n",
    # Without words as the launcher calls it, with the script as a job calls it.
    "qsub": RECORD + '[ $# = 0 ] && cat > submitted\n',
    "mpiexec": RECORD
    + 'while [ "$1" != -n ]; do shift; done\n'
    + "for i in $(seq 0 $(($2 - 1))); do echo @$i start h $i; echo @$i end 0; done\n",
    # As ssh does: all words after the host are one text for a shell there.
    "ssh": RECORD + 'while [ "$1" != -- ]; do shift; done\nshift 2\nexec sh -c "$*"\n',
    "scontrol": RECORD + "printf 'h1\\nh2\\n'\n",
}  # fmt: skip


class Case(NamedTuple):
    """One value in one field of a job for one system."""

    system: str
    field: str
    value: str
    in_file: bool = False  # launch.toml

    def words(self) -> list[str]:
        words = ["--hosts=h1:1"] if self.system == "ssh" else [f"--{self.system}"]
        if self.system == "ssh" and self.field in ("hosts", "hostfile", "lines of a hostfile"):
            words = ["--hostfile=lines"] if self.field == "lines of a hostfile" else []
        if self.system == "kubernetes":
            words += ["--dry-run", *(["--image=i"] if self.field != "image" else [])]
        words += ["--quiet"] if self.system == "ssh" else []
        words += ["--python=python"] if self.field != "python" else []
        if self.field in ("argument", "lines of a hostfile") or self.in_file:
            return [*words, "eval", *([self.value] * (self.field == "argument"))]
        dashes = "-n" if self.field == "n" else f"--{self.field.replace('_', '-')}="
        return [*words, dashes + self.value, "eval"]

    def write(self) -> None:
        """Write the files that it needs into the working folder."""
        if self.field == "lines of a hostfile":
            Path("lines").write_bytes(self.value.encode(errors="surrogateescape"))
        if self.in_file:
            value = [self.value] if self.field in REPEATABLE else self.value
            Path("launch.toml").write_text(f"{self.field} = {json.dumps(value)}\n")


class Done(NamedTuple):
    """What the launcher has done."""

    code: int
    out: str
    err: str


def hostile(count: int, random_: random.Random) -> list[str]:
    """Return so many values, first those that are known to be telling."""
    made = [
        "".join(random_.choices(FRAGMENTS, k=random_.randint(1, 6)))
        for _ in range(max(0, count - len(WHOLE)))
    ]
    return [*WHOLE, *made][:count]


def cases(systems: list[str], count: int, seed: int) -> Iterator[Case]:
    random_ = random.Random(seed)
    for system in systems:
        for field in SYSTEMS[system]:
            for i, value in enumerate(hostile(count, random_)):
                writable = value.isprintable() or "\udcff" not in value
                in_file = i % 2 == 1 and field not in ("argument", "lines of a hostfile", *NUMBERS)
                yield Case(system, field, value, in_file and writable)


def call(words: list[str]) -> Done:
    """Call the launcher in this process."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = start.main(words)
    return Done(code, out.getvalue(), err.getvalue())


class Place:
    """A working folder with fake programs on PATH; the launcher takes all from there."""

    def __init__(self, folder: Path) -> None:
        self.work, self._bin, self._record = folder / "work", folder / "bin", folder / "record"
        self._bin.mkdir()
        for name, text in PROGRAMS.items():
            (self._bin / name).write_text(text)
            (self._bin / name).chmod(0o755)
        (self._bin / HARMLESS).symlink_to(self._bin / "python")
        self.refused = False  # whether the last case was
        self._seen: dict[tuple[str, str], tuple[Any, ...]] = {}

    def __enter__(self) -> "Place":
        self._before, self._cwd, self._find = dict(os.environ), Path.cwd(), mpi.find
        mpi.find = lambda python: mpi.Mpi("mpich", (5,), self._bin / "mpiexec")
        os.environ |= {"PATH": f"{self._bin}:/usr/bin:/bin", "RECORD": str(self._record)}
        os.environ["PBS_O_WORKDIR"] = str(self.work)
        return self

    def __exit__(self, *_: object) -> None:
        mpi.find = self._find
        os.chdir(self._cwd)
        os.environ.clear()
        os.environ.update(self._before)

    def run(self, case: Case) -> tuple[Done, tuple[Any, ...]]:
        """Run one case in an empty folder; return what became of it, and what it did."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        os.chdir(self.work)
        self._record.unlink(missing_ok=True)
        case.write()
        before = {path.name for path in self.work.iterdir()}
        done = call(case.words())
        self.refused = done.code != 0
        wrote = {path.name for path in self.work.iterdir()} - before - {"submitted"}
        return done, self._effect(case, done, wrote)

    def _effect(self, case: Case, done: Done, wrote: set[str]) -> tuple[Any, ...]:
        """Return what is the same for a harmless value, but for the value."""
        if done.code:
            return (sorted(wrote),)
        if case.system == "kubernetes":
            return (sorted(wrote), yaml.safe_load(done.out))
        if case.system == "ssh":
            return (sorted(wrote), self.recorded())
        script = Path("submitted").read_text()
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        if checked.returncode or checked.stderr:
            return ("bash -n", checked.stderr)
        self.recorded()
        if case.field == "python":  # the script starts it by this name
            path = case.value in ("", ".", "..") or "/" in case.value
            self._runs = not path and len(os.fsencode(case.value)) < 250
            if self._runs and not (self._bin / case.value).exists():
                (self._bin / case.value).symlink_to(self._bin / "python")
        subprocess.run(["bash", "-s"], input=script, capture_output=True, text=True, timeout=60)
        return (sorted(wrote), script.split("\n"), self.recorded())

    def recorded(self) -> list[list[str]]:
        """Return the words of all programs that were started, in order."""
        if not self._record.exists():
            return []
        parts = os.fsdecode(self._record.read_bytes()).split("\0")[:-1]
        self._record.unlink()
        calls = []
        while parts:
            count = int(parts[0]) + 1
            calls.append(parts[1 : count + 1])
            parts = parts[count + 1 :]
        return calls

    def usual(self, case: Case) -> tuple[Any, ...]:
        """Return what the same does with a harmless value."""
        key = (case.system, case.field)
        if key not in self._seen:
            value = USUAL.get(case.field, HARMLESS)
            done, self._seen[key] = self.run(Case(case.system, case.field, value))
            assert done.code == 0, (case, done)
        return self._seen[key]

    def fault(self, case: Case) -> str:
        """Return what is wrong in one case, "" if nothing is."""
        of_ssh = case.system == "ssh" and case.field == "ssh"  # it is the program itself
        alone = of_ssh or case.field in (*NUMBERS, "template", "hostfile")
        usual = () if alone else self.usual(case)
        try:
            done, effect = self.run(case)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if Path("canary").exists() and not of_ssh and case.field != "setup":
            return "canary"
        if done.code:
            message = done.err.startswith("launch: ") and done.err.count("\n") == 1
            if done.code != 2 or not message or len(done.err) > 3000 or done.out or effect[0]:
                return f"code {done.code}, {effect}, {done.err[-500:]!r}"
            return ""
        if case.field in NUMBERS:
            plain = r"[0-9:]+" if case.field == "time" else r"[0-9]+"
            return "" if re.fullmatch(plain, case.value) else "is no number"
        if of_ssh:
            return ""
        if case.field in ("hosts", "lines of a hostfile"):
            return not_as_hosts(effect[1])
        if case.field in ("template", "hostfile"):
            return "there is no such file"
        expected = replaced(usual, replacements(case))
        if case.system == "ssh" and case.field == "mpi_args":  # they are words by purpose
            expected = (usual[0], [split(words, case.value) for words in usual[1]])
        if case.system == "ssh":
            expected, effect = without_job(expected), without_job(effect)
        if case.field == "python" and case.system in SUFFIX and not self._runs:
            expected, effect = expected[:2], effect[:2]  # it can be no name on PATH
        if case.field == "log_dir" and case.system == "ssh":  # which is made
            expected, effect = expected[1:], effect[1:]
        if case.field == "setup":
            expected, effect = last_start(expected), last_start(effect)
        return "" if effect == expected else f"{effect}\nexpected {expected}"


def replacements(case: Case) -> dict[str, str]:
    """Return what stands for the harmless value in the same place."""
    value = str(Path(case.value)) if case.field == "log_dir" else case.value
    if case.field == "volume":
        claim, _, path = value.partition(":")
        return {"claim9": claim, "/path9": path}
    if case.system in SUFFIX and case.field in ("python", "module", "argument"):
        # In the script quoted, in what it starts as it is: `replaced` tries this one first.
        return {"\0quoted": shlex.quote(value), HARMLESS: value}
    if case.system in SUFFIX and case.field in ("ssh", "container", "mpi_args", "log_dir"):
        name = f"--{case.field.replace('_', '-')}="
        return {"\0quoted": shlex.quote(name + value), "\0plain": name + HARMLESS, HARMLESS: value}
    return {USUAL.get(case.field, HARMLESS): value}


def replaced(tree: Any, pairs: dict[str, str]) -> Any:
    """Put the value in the place of the harmless one, in all texts of nested lists."""
    if isinstance(tree, str):
        if "\0quoted" in pairs and (tree.startswith(("exec ", "module load", "timeout "))):
            return tree.replace(pairs.get("\0plain", HARMLESS), pairs["\0quoted"])
        for old, new in pairs.items():
            tree = tree.replace(old, new)
        return tree
    if isinstance(tree, dict):
        return {key: replaced(item, pairs) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(replaced(item, pairs) for item in tree)
    return tree


def not_as_hosts(calls: list[list[str]]) -> str:
    """Return the call of ssh or mpiexec that gets anything but names of hosts, "" if none does."""
    name = "[A-Za-z0-9_][A-Za-z0-9_.-]*"
    for words in calls:
        if words[0] == "ssh" and not re.fullmatch(name, words[words.index("--") + 1]):
            return str(words)
        if words[0] == "mpiexec" and "-hosts" in words:
            listed = words[words.index("-hosts") + 1]
            if not all(re.fullmatch(name + ":[0-9]+", host) for host in listed.split(",")):
                return str(words)
    return ""


def split(words: list[str], value: str) -> list[str]:
    """Put all words of the value in the place of the harmless one."""
    return [new for word in words for new in (shlex.split(value) if word == HARMLESS else [word])]


def without_job(effect: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leave the name of the job out, which is another each time."""
    names = re.compile(r"\b[0-9a-f]{16}\b")
    return (effect[0], [[names.sub("JOB", word) for word in words] for words in effect[1]])


def last_start(effect: tuple[Any, ...]) -> tuple[Any, ...]:
    """Leave out what lines of shell do by themselves: the script, and how ddpbp is started."""
    if len(effect) < 3:
        return effect
    starts = [words for words in effect[2] if words[:2] == ["python", "-m"]]
    return (effect[0], effect[1], starts)


# --- hostfiles and the variables of batch systems -------------------------------------------------


def allocations(place: Place, count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield (what, fault) of hostfiles and variables; the fault is "" if there is none."""
    random_ = random.Random(seed)
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "h[1-2]", "SLURM_TASKS_PER_NODE": "1(x2)"}
    good = "h1 slots=2\n# two\nh2:3\nn-4.x slots = 1 max_slots=2\n"
    for value in hostile(count, random_):
        file = Path("nodes")
        for name in ("SLURM_JOB_NODELIST", "SLURM_TASKS_PER_NODE"):
            yield name, allocation_fault(place, slurm | {name: value})
        for name in ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE"):
            yield name, allocation_fault(place, {name: value.replace("\0", "") or "x"})
        cut = random_.randrange(len(good))
        file.write_bytes((good[:cut] + value + good[cut:]).encode(errors="surrogateescape"))
        yield "lines of a hostfile", allocation_fault(place, {"PBS_NODEFILE": str(file)})


def allocation_fault(place: Place, environment: dict[str, str]) -> str:
    try:
        found = hosts.allocation(environment)
    except LaunchError as error:
        return "" if "\n" not in str(error) and len(str(error)) < 1000 else f"message {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    names = [host.name for host in found.hosts] if found else []
    wrong = [name for name in names if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)]
    asked = [words[3] for words in place.recorded() if words[0] == "scontrol"]
    return f"hosts {wrong}" if wrong else "option" if any(w[:1] == "-" for w in asked) else ""


def ssh_takes_no_option(names: list[str]) -> list[str]:
    """Return the hosts that the real ssh does not read as a host."""
    wrong = []
    for name in names:
        asked = subprocess.run(["ssh", "-G", "--", name], capture_output=True, text=True)
        settings = dict(line.split(" ", 1) for line in asked.stdout.splitlines() if " " in line)
        # A number is an address to ssh: 4 is 0.0.0.4.
        host = f"0.0.0.{int(name, 0)}" if re.fullmatch("(0x)?[0-9]+", name) else name.lower()
        if asked.returncode or settings["hostname"] != host or "proxycommand" in settings:
            wrong.append(name)
    return wrong


def run(
    systems: list[str], count: int, seed: int, told: Callable[[str], object], sample: int = 0
) -> int:
    """Run all cases of the systems, or a sample of so many; return how many failed."""
    chosen = list(cases(systems, count, seed))
    chosen = random.Random(seed).sample(chosen, sample) if sample else chosen
    refused, taken, failed = Counter[str](), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder, Place(Path(folder)) as place:
        names = set[str]()
        for case in chosen:
            fault = place.fault(case)
            if fault:
                failed += 1
                told(f"{case.system} {case.field} {case.value[:100]!r} {case.in_file}: {fault}")
            kept = case.system == "ssh" and case.field == "hosts"
            (refused if place.refused else taken)[case.system] += 1
            if kept and not place.refused:
                names |= {host.name for host in hosts.from_text(case.value)}
        for what, fault in allocations(place, min(count, sample or count), seed):
            taken["variables and hostfiles"] += 1
            if fault:
                failed += 1
                told(f"{what}: {fault}")
    if ssh := ssh_takes_no_option(sorted(names)):
        failed += len(ssh)
        told(f"ssh -G takes as no host: {ssh}")
    for system in [*systems, "variables and hostfiles"]:
        told(f"{system:<24} {refused[system]:>6} refused {taken[system]:>6} passed on")
    told(f"{len(names)} hosts were shown to ssh; {failed} failed")
    return failed


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", choices=SYSTEMS, help="one alone (default: all)")
    options = parser.parse_args()
    systems = [options.system] if options.system else list(SYSTEMS)
    sys.exit(bool(run(systems, options.count, options.seed, say)))


if __name__ == "__main__":
    main()
