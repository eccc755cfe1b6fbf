"""A real OpenSSH server on the loopback: keys, port and configuration of its own; the user's files are not touched."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

NEEDED = "needs sshd and ssh-keygen (apt install openssh-server)"
SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")


def available() -> bool:
    """Whether this system has a server to start."""
    return SSHD is not None and shutil.which("ssh-keygen") is not None and shutil.which("ssh") is not None


class Sshd:
    """Started on entering. config: for `ssh -F`, with the hosts `board`, and `stranger` whose key is refused."""

    def __init__(self, folder: Path, *, force_command: str = "") -> None:
        self.folder, self.user, self.port = folder, getpass.getuser(), _free_port()
        self.config, self.known = folder / "config", folder / "known_hosts"
        self._force, self._process = force_command, None  # type: str, subprocess.Popen[bytes] | None

    def __enter__(self) -> Sshd:
        for name in ("host", "user", "other"):
            _keygen(self.folder / name)
        self.folder.chmod(0o700)
        (self.folder / "authorized").write_text((self.folder / "user.pub").read_text())
        self.trust("host")
        self.config.write_text(self._client("board", "user") + self._client("stranger", "other"))
        settings = {
            "ListenAddress": f"127.0.0.1:{self.port}",
            "HostKey": self.folder / "host",
            "AuthorizedKeysFile": self.folder / "authorized",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
            "MaxStartups": "50",
        }
        if self._force:
            settings["ForceCommand"] = self._force
        (self.folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; on the same port after a `stop`."""
        assert SSHD is not None
        command = [SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.folder / "log")]
        self._process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError((self.folder / "log").read_text())

    def stop(self) -> None:
        """As a board that loses power: the server and every connection of it, at once."""
        process, self._process = self._process, None
        if process is not None:
            for pid in [*_children(process.pid), process.pid]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()

    def trust(self, name: str) -> None:
        """Which host key the client believes the server has."""
        key = " ".join((self.folder / f"{name}.pub").read_text().split()[:2])
        self.known.write_text(f"[127.0.0.1]:{self.port} {key}\n")

    def _client(self, host: str, key: str) -> str:
        lines = (
            f"Host {host}",
            "HostName 127.0.0.1",
            f"Port {self.port}",
            f"IdentityFile {self.folder / key}",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            f"UserKnownHostsFile {self.known}",
            "GlobalKnownHostsFile /dev/null",
            "StrictHostKeyChecking yes",
        )
        return "\n".join(lines) + "\n"


def _children(pid: int) -> list[int]:
    """Every descendant that is still the server's (a session's own shell is left to notice)."""
    done = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    found = []
    for line in done.stdout.splitlines():
        number, _, name = line.strip().partition(" ")
        if name.strip().startswith("sshd"):
            found += [*_children(int(number)), int(number)]
    return found


def _keygen(path: Path) -> None:
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
