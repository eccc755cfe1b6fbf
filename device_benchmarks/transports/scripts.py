"""The shell scripts that run on a device: POSIX sh (dash, busybox, toybox, mksh), every value quoted.

A login shell that is not POSIX (fish, csh) still understands them, since each is handed to `sh -c` as one word.
"""

from __future__ import annotations

import math
import shlex
import uuid
from collections.abc import Mapping, Sequence

FOLDER, PYTHON, TIMEOUT, MACHINE, READY, REMOVED, END = (
    f"edgekd-{word}" for word in ("folder", "python", "timeout", "machine", "ready", "removed", "end")
)
PYTHONS = ("python3", "python")
KILL_AFTER_S = 5

# What runs in a folder has its process id there, until it ends. A number that now belongs to another program is spared;
# where the kernel does not tell (no /proc), it is ours as far as anyone knows.
_REMOVE = """
for f in "$D"/*.pid; do
  [ -e "$f" ] || continue
  p=$(cat "$f")
  if [ -r "/proc/$p/cmdline" ]; then
    case $(tr '\\0' ' ' <"/proc/$p/cmdline") in *"$D"*) ;; *) continue ;; esac
  fi
  kill -9 "$p" 2>/dev/null
done
rm -rf "$D"
"""

# Its stdin is this host's hand: when that lets go, by intent or by death, `cat` ends and the folder is removed.
_KEEPER = """
umask 077
D=$(mktemp -d {parent}/edgekd.XXXXXX) || exit 73
trap '' HUP INT TERM PIPE
echo; echo {FOLDER} "$D"
for p in {pythons}; do
  if "$p" -c 'import sys; sys.exit(sys.version_info < (3, 6))' >/dev/null 2>&1; then echo {PYTHON} "$p"; break; fi
done
timeout -k 5 5 true >/dev/null 2>&1 && echo {TIMEOUT} yes
echo {MACHINE} "$(uname -m)"
echo {READY}
cat >/dev/null
cd /
{remove}
[ -e "$D" ] || echo {REMOVED}
"""


def keeper(parent: str, pythons: Sequence[str] = PYTHONS) -> str:
    """Makes the folder, tells what is there, waits for the end of its input, then kills and removes."""
    return _one_word(
        _KEEPER.format(
            parent=shlex.quote(parent.rstrip("/")),
            pythons=" ".join(map(shlex.quote, pythons)),
            remove=_REMOVE,
            FOLDER=FOLDER,
            PYTHON=PYTHON,
            TIMEOUT=TIMEOUT,
            MACHINE=MACHINE,
            READY=READY,
            REMOVED=REMOVED,
        )
    )


def remove(folder: str) -> str:
    """What the keeper would have done, when it is gone and the folder is not."""
    return _one_word(f'D={shlex.quote(folder)}\n{_REMOVE}\n[ -e "$D" ] || echo {REMOVED}')


def command(folder: str, argv: Sequence[str], env: Mapping[str, str], *, timeout_s: float, has_timeout: bool) -> str:
    """Runs a program in the folder with its process id on record; its exit status ends stderr and is the script's.

    The status is said in words because ssh and adb lose it: 255 for any signal, 0 for a pulled cable.

    >>> "timeout -k 5 9" in command("/tmp/x", ["ls", "a b; rm -rf /"], {}, timeout_s=9, has_timeout=True)
    True
    """
    settings = [f"{name}={value}" for name, value in env.items()]
    program = " ".join(shlex.quote(word) for word in (["env", *settings] if settings else []) + list(argv))
    record = f"{uuid.uuid4().hex}.pid"
    recorded = f"echo $$ > {record}; exec {program}"
    limit = f"timeout -k {KILL_AFTER_S} {math.ceil(timeout_s)} " if has_timeout else ""
    inside = f"cd {shlex.quote(folder)} && {limit}sh -c {shlex.quote(recorded)}"
    return _one_word(f"{inside}\nr=$?\nrm -f {record}\necho >&2; echo {END} $r >&2\nexit $r")


def _one_word(script: str) -> str:
    return f"sh -c {shlex.quote(script)}"


def ended(stderr: str) -> tuple[int | None, str]:
    """The exit status that a command's stderr ends with (None: the link was cut before), and stderr without it.

    >>> ended("oops\\n\\nedgekd-end 3\\n"), ended("oops")
    ((3, 'oops'), (None, 'oops'))
    """
    head, found, tail = stderr.rpartition(f"\n{END} ")
    status = tail.strip().split("\n")[0]
    return (int(status), head.strip()) if found and status.isdigit() else (None, stderr.strip())
