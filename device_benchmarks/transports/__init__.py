"""How this host reaches a device: itself, ssh or adb, each with a temporary folder that never outlives the session."""

from edgekd.device_benchmarks.transports.address import Address, parse_device
from edgekd.device_benchmarks.transports.errors import DeviceError, DeviceLostError
from edgekd.device_benchmarks.transports.link import Completed, Link, Transport
from edgekd.device_benchmarks.transports.remote import Remote

__all__ = ["Address", "Completed", "DeviceError", "DeviceLostError", "Link", "Remote", "Transport", "parse_device"]
