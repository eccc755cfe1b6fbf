"""Whether a device is what a profile says it is, as far as its kernel and its board tell."""

from __future__ import annotations

from edgekd.device_benchmarks.host import HostState
from edgekd.device_benchmarks.jetson import parse_nvpmodel
from edgekd.profile import HardwareProfile, profile_names

_ARM, _X86 = ("aarch64", "arm64"), ("x86_64", "amd64")
_MACHINES = {"jetson": _ARM, "raspberry-pi": _ARM, "android": _ARM, "x86": _X86}
_BOARDS = {"jetson": ("jetson", "tegra"), "raspberry-pi": ("raspberrypi",)}


def mismatches(profile: HardwareProfile, state: HostState, flags: frozenset[str]) -> list[str]:
    """Processor, board, instruction set extensions, power mode against the profile's; what is not told is not judged.

    flags: of its processor, empty where it does not tell.
    """
    machine, machines = state.kernel.rpartition(" ")[2].lower(), _MACHINES.get(profile.kind, ())
    if machine and machines and machine not in machines:
        return [f"its kernel runs on {machine}, not on {machines[0]}"]
    board = " ".join(part for part in (state.device_model, state.soc) if part)
    if board and not _is_board(profile, _letters(board)):
        return [f"it calls itself '{board}'"]
    missing = [flag for flag in profile.cpu_flags if flag not in flags] if flags else []
    extra = [flag for flag in profile.cpu_flags_absent if flag in flags]
    return [
        *([f"its processor lacks {', '.join(missing)}"] if missing else []),
        *([f"its processor also has {', '.join(extra)}"] if extra else []),
        *_power_mode(profile, state.power_mode or ""),
    ]


def _power_mode(profile: HardwareProfile, told: str) -> list[str]:
    """Of what `nvpmodel -q` says only what is sure: NVIDIA's names differ by board and release (MAXN is the 10 W of a
    Jetson Nano and the 15 W are MODE_15W_6CORE), so that a mode is another where it is one more of the profile's, or
    both are named after a power.
    """
    mine, name = profile.power_mode, (parse_nvpmodel(told) or "").partition(" ")[0]
    if mine is None or not name:
        return []
    words, known = name.lower().split("_"), [mode.name for mode in profile.power_modes]
    theirs = next((word for word in words if word in known or (_is_power(mine) and _is_power(word))), mine)
    return [] if theirs == mine else [f"its power mode is {name}, and the profile is for {mine}"]


def _is_power(word: str) -> bool:
    """As `15w`."""
    return word[-1:] == "w" and word[:-1].isdigit()


def _is_board(profile: HardwareProfile, board: str) -> bool:
    """A Raspberry Pi profile that is edgekd's own, or named after one of those, is for that model alone; a Jetson does
    not tell its module by that name.
    """
    words = _BOARDS.get(profile.kind, ())
    if profile.kind == "raspberry-pi" and (model := _shipped_model(profile.device_name)):
        words = (_letters(model),)
    return not words or any(word in board for word in words)


def _shipped_model(name: str) -> str:
    """The shipped profile that a name is, or begins with: a user's own name says nothing of what a board calls itself.

    >>> _shipped_model("raspberry-pi-5-cooled"), _shipped_model("raspberry-pi-500")
    ('raspberry-pi-5', '')
    """
    return max((known for known in profile_names() if f"{name}-".startswith(f"{known}-")), key=len, default="")


def _letters(text: str) -> str:
    """What is compared.

    >>> _letters("Raspberry Pi Zero 2 W Rev 1.0")
    'raspberrypizero2wrev10'
    """
    return "".join(character for character in text.lower() if character.isalnum())
