"""This host as a device: the scripts and the runner of the other transports, without a link that could fail."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from edgekd.device_benchmarks.transports.errors import DeviceError


class LocalLink:
    """A `Link` to this host. folder: where temporary folders go; this host's own place unless told."""

    def __init__(self, folder: str = "") -> None:
        self.name, self.folder = "local", folder or tempfile.gettempdir()

    def open(self) -> None:
        """Nothing to reach."""

    def argv(self, script: str, *, keeper: bool = False) -> list[str]:
        """The shell of this host."""
        return ["/bin/sh", "-c", script]

    def push(self, source: Path, target: str, *, timeout_s: float) -> None:
        """A copy. Raises: DeviceError: no space, no such file, no permission."""
        self._copy(source, Path(target))

    def pull(self, source: str, target: Path, *, timeout_s: float) -> None:
        """A copy, as `push`."""
        self._copy(Path(source), target)

    def explain(self, returncode: int | None, stderr: str) -> DeviceError | None:
        """A link that cannot fail has nothing to say."""
        return None

    def alive(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """Nothing was taken."""

    def _copy(self, source: Path, target: Path) -> None:
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            target.unlink(missing_ok=True)
            raise DeviceError(f"{source.name} was not copied ({error.strerror})", where=self.name) from error
