"""What goes wrong between this host and a device: one line that names the device and the cure."""

from __future__ import annotations

from edgekd.errors import CheckError


class DeviceError(CheckError):
    """A device that refuses, fails or answers nonsense. `where` is the device as the user named it."""


class DeviceLostError(DeviceError):
    """The link went (cable, network, reboot, stall): what was measured is kept, and a retry may help."""
