"""In which Python does each contender run, and where does that come from?

1. `interpreter` looks for a Python of the wanted version that really starts (shims on the path may not).
2. `Environment.python` makes a virtual environment on first use, installs what the contender needs, and leaves a stamp.
3. Where either fails, `Unavailable` says why, and the contender is left out with that message.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


class Unavailable(Exception):
    """A contender cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment of its own for one contender or several."""

    name: str
    """Folder name."""
    requirements: tuple[str, ...]
    """What pip installs."""
    minimum: tuple[int, int] = (3, 12)
    """Oldest Python that the requirements support."""

    def python(self, folder: Path) -> Path:
        """Give the environment's interpreter, making the environment under ``folder`` if need be.

        Raises
        ------
        Unavailable
            If there is no such Python, or pip cannot install the requirements.
        """
        home = folder / self.name
        python = home / "bin" / "python"
        stamp = home / "installed.json"
        if stamp.exists() and json.loads(stamp.read_text()) == list(self.requirements):
            return python
        base = interpreter(self.minimum)
        print(f"making the environment {self.name} ({', '.join(self.requirements)}) with {base}", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        log = folder / f"{self.name}.log"
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            for command in ([base, "-m", "venv", home], [python, "-m", "pip", "install", *self.requirements]):
                if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:
                    raise Unavailable(f"{' '.join(map(str, command))} failed, see {log}")
        stamp.write_text(json.dumps(list(self.requirements)))
        return python


def interpreter(minimum: tuple[int, int]) -> Path:
    """Find a Python of version ``minimum`` or later that starts and can make virtual environments.

    Raises
    ------
    Unavailable
        If none is found on the path, beside this one, or among pyenv's versions.
    """
    versions = [f"python3.{minor}" for minor in (13, 12, 14, 11) if (3, minor) >= minimum]
    candidates = [Path(sys.executable)]
    candidates += [Path(found) for version in versions if (found := shutil.which(version))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates += sorted(pyenv.glob("3.*/bin/python"), reverse=True)
    code = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
    for candidate in candidates:
        try:
            answer = subprocess.run([candidate, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if answer.returncode == 0 and tuple(map(int, answer.stdout.split())) >= minimum:
            return candidate
    raise Unavailable(f"no Python >= {minimum[0]}.{minimum[1]} was found that starts")
