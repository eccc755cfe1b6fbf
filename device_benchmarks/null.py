"""The null device: replays recorded samples through the same interface as a worker, so that tests run in seconds."""

from __future__ import annotations

import hashlib
from itertools import cycle, islice
from typing import Any

from edgekd.device_benchmarks.contender import Contender, Replay


class ReplayRunner:
    """A `Runner` whose clock is a recording. Fresh processes go on where the last one stopped: `skip` samples in."""

    def __init__(self, contender: Contender, source: Replay, *, skip: int = 0) -> None:
        self.name, self._source = contender.name, source
        self._shape = contender.input_shape or (1, 1, 1, 1)
        pairs = list(zip(source.wall_ns, source.cpu_ns or source.wall_ns, strict=True))
        self._samples = islice(cycle(pairs), skip, None)

    def prepared(self) -> dict[str, Any]:
        """Nothing to import."""
        return {"import_ms": 0.0}

    def load(self) -> dict[str, Any]:
        """The recorded load time; the first inference is the first sample."""
        return {
            "load_ms": self._source.load_ms,
            "first_inference_ms": self._source.wall_ns[0] / 1e6,
            "input_shape": list(self._shape),
            "input_sha256": hashlib.sha256(b"").hexdigest(),
            "runtime": "replay",
            "artifact_sha256": None,
            "executed": "stand-in",
            "note": "recorded samples, not a measurement of this host",
        }

    def warm_up(self, *, min_runs: int, min_s: float, cap_s: float) -> dict[str, Any]:
        """None of the recording is spent."""
        return {"wall_ns": [], "converged": True, "recent_ns": float(self._source.wall_ns[0])}

    def block(self, *, runs: int, lead_in: int, expected_s: float) -> dict[str, list[int]]:
        """The next `runs` samples."""
        pairs = list(islice(self._samples, runs))
        return {"wall_ns": [wall for wall, _ in pairs], "cpu_ns": [cpu for _, cpu in pairs]}

    def finish(self) -> dict[str, Any]:
        """The recorded memory."""
        peak = self._source.peak_rss_mib
        return {"peak_rss_mib": peak, "model_rss_mib": peak, "pss_mib": None}

    def close(self) -> None:
        """Nothing to reap."""
