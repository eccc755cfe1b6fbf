"""The deployment bundle: one zip that holds what a device needs, says where it comes from, and can be checked again."""

from __future__ import annotations

from edgekd.bundle.vectors import write_parity
from edgekd.bundle.verify import BundleCheck, VerifyReport, verify
from edgekd.bundle.write import write_bundle

__all__ = ["BundleCheck", "VerifyReport", "verify", "write_bundle", "write_parity"]
