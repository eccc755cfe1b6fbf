"""An adbd for tests: the device side of the ADB protocol over TCP, for Debian's unmodified `adb` client.

Commands run on this machine (or under a prefix, as `chroot ROOT /bin/sh -c`), files live under `root`. Spoken: CNXN,
AUTH (signatures really verified), OPEN/OKAY/WRTE/CLSE with flow control; `shell:`, `shell,v2:`, `exec:`, `sync:`,
`reboot:`. Not spoken: TLS, pairing, compression, delayed acks, PTYs. `Faults` are those that a phone on a desk shows.
"""

from .device import Adbd, AdbdThread
from .wire import Faults

__all__ = ["Adbd", "AdbdThread", "Faults"]
