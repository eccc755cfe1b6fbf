"""Who measures as the profile's device: this host where it is that device, or the one that `--on` names.

A device that fails in the middle is a reason beside the figures that are missing, never the end of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekd.artifact import Artifact
from edgekd.device_benchmarks.contender import of_artifact
from edgekd.device_benchmarks.devices import Device, device_of, load_devices
from edgekd.device_benchmarks.host import HostState
from edgekd.device_benchmarks.measure import measure_all
from edgekd.device_benchmarks.measurement import MeasurementSet
from edgekd.device_benchmarks.session import DeviceSession
from edgekd.errors import EdgekdError, InputError
from edgekd.pipeline.context import Context, Inputs
from edgekd.pipeline.events import Events
from edgekd.pipeline.exporting import runs_here
from edgekd.pipeline.likeness import mismatches
from edgekd.pipeline.plan import Plan, TargetPlan
from edgekd.pipeline.rows import is_profile_device
from edgekd.pipeline.settings import Settings
from edgekd.profile import HardwareProfile

EMULATED = "an emulator: its times are no latency"


@dataclass(frozen=True)
class Found:
    """What measuring gave, or why it gave nothing. unlike: what of the device is not as the profile says it."""

    set: MeasurementSet | None
    reason: str = ""
    unlike: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attached:
    """The planned export in the profile's first runtime, and where it is measured. device None: this host."""

    target: TargetPlan
    profile: HardwareProfile
    settings: Settings
    command: str
    device: Device | None = None

    @property
    def name(self) -> str:
        """For a sentence: "measured on ..."."""
        return "this device" if self.device is None else self.device.name

    def measure(
        self,
        artifacts: Mapping[str, Artifact],
        *,
        pairs: Sequence[tuple[str, str]] = (),
        on_progress: Callable[[str, float], None] | None = None,
    ) -> Found:
        """Time exported files side by side, with the run's threads. A file that cannot run is among `failures`."""
        if self.device is None:
            return Found(self._timed(artifacts, pairs, on_progress, None))
        if why := undriven(self.profile):
            return Found(None, why)
        session = DeviceSession(self.device)
        try:
            with session:
                found = self._there(session, artifacts, pairs, on_progress)
        except EdgekdError as error:
            found = Found(None, str(error).removeprefix(f"{self.name}: "))
        if not session.left_behind:
            return found
        left = f"{self.name}: could not see that {session.left_behind} was removed there; its keeper does it"
        return replace(found, notes=(*found.notes, left))

    def _there(
        self,
        session: DeviceSession,
        artifacts: Mapping[str, Artifact],
        pairs: Sequence[tuple[str, str]],
        on_progress: Callable[[str, float], None] | None,
    ) -> Found:
        unlike = disagreements(self.profile, session)
        why_not = {target: session.why_not(target) for target in sorted({a.target for a in artifacts.values()})}
        refused = {name: why for name, artifact in artifacts.items() if (why := why_not[artifact.target])}
        runnable = {name: artifact for name, artifact in artifacts.items() if name not in refused}
        if not runnable:
            return Found(None, "; ".join(dict.fromkeys(refused.values())) or "no file to measure", unlike)
        timed = self._timed(runnable, [p for p in pairs if set(p) <= runnable.keys()], on_progress, session)
        if timed.kind == "emulated":
            return Found(None, EMULATED, unlike)
        if not timed.measurements:
            return Found(None, "; ".join(dict.fromkeys(timed.failures.values())), unlike)
        lost = (f"{self.name}: partial, whole rounds up to here only: {timed.partial}",) if timed.partial else ()
        return Found(timed.model_copy(update={"failures": {**timed.failures, **refused}}), "", unlike, lost)

    def _timed(
        self,
        artifacts: Mapping[str, Artifact],
        pairs: Sequence[tuple[str, str]],
        on_progress: Callable[[str, float], None] | None,
        place: DeviceSession | None,
    ) -> MeasurementSet:
        return measure_all(
            [of_artifact(artifact, name=name) for name, artifact in artifacts.items()],
            mode="quick",
            threads=self.settings.threads,
            pairs=pairs,
            seed=self.settings.seed,
            keep_going=True,
            place=place,
            on_progress=on_progress,
            command=self.command,
        )


def attached(context: Context) -> Attached | None:
    """Who can measure the planned export in the profile's first runtime; None: nobody.

    Raises: InputError: `--on` names no device.
    """
    target = _primary(context.plan, context.profile)
    if target is None:
        return None
    command = context.record.document["command"]
    if context.settings.on is not None:
        return Attached(target, context.profile, context.settings, command, device(context.settings))
    here = is_profile_device(context.profile.model_dump(mode="json")) and runs_here(target.target)
    return Attached(target, context.profile, context.settings, command) if here else None


def device(settings: Settings) -> Device:
    """What `--on` names. Raises: InputError: no device, or the devices file cannot be used."""
    assert settings.on is not None
    return device_of(settings.on, load_devices(Path(settings.devices_file) if settings.devices_file else None))


def reach(settings: Settings, profile: HardwareProfile) -> tuple[str, ...]:
    """Connect once, before anything is loaded or trained: who answered, and what speaks against it.

    Raises: InputError: no such device, it cannot be used, has not the profile's first runtime, is an emulator, or the
        profile is about a unit of it that nothing here can open.
    """
    named, target = device(settings), profile.primary.target
    if why := undriven(profile):
        fix = "choose a profile whose first runtime is on such a unit, or leave --on out"
        raise InputError(why, where=f"--on {named.name}", fix=fix)
    try:
        with DeviceSession(named) as session:
            why_not, state = session.why_not(target), session.identity()
            unlike = disagreements(profile, session, state)
    except EdgekdError as error:
        raise InputError(error.what, where=error.where, fix=error.fix) from error
    why_not = why_not or (EMULATED if state.emulated else "")
    if why_not:
        raise InputError(why_not, where=f"--on {named.name}")
    what = ", ".join(part for part in (state.device_model, state.cpu_model, state.kernel, state.runtimes) if part)
    return (f"attached: {named.name} ({what})", *unlike)


def undriven(profile: HardwareProfile) -> str:
    """Why no device can be measured as this profile's: the unit that its first runtime is on; "" where one can.

    What runs there opens the CPU, and trtexec the GPU, whatever the profile says: its figures would be another unit's.
    """
    target, unit = profile.primary.target, profile.primary.unit
    opened = "gpu" if target == "tensorrt" else "cpu"
    if unit == opened:
        return ""
    return f"'{profile.name}' is for '{target}' on the {unit}, and a device runs '{target}' on its {opened} only"


def reach_or_note(settings: Settings, profile: HardwareProfile, events: Events, *, required: bool) -> None:
    """As `reach`, told as notes. Once the student is selected the device is no longer required: training can go on."""
    if settings.on is None:
        return
    device(settings)
    try:
        lines = reach(settings, profile)
    except InputError as error:
        if required:
            raise
        lines = (f"cannot be measured on now, the run goes on: {error}",)
    for line in lines:
        events.note(line)


def require_export(settings: Settings, inputs: Inputs, plan: Plan) -> None:
    """Raises: InputError: a device is attached, and what it would be measured with is not exported."""
    target = inputs.profile.primary.target
    if settings.on is None or _primary(plan, inputs.profile) is not None:
        return
    why = next((t.why for t in plan.targets if t.target == target), f"not among --target {','.join(settings.targets)}")
    raise InputError(
        f"nothing to measure there: '{target}', the first runtime of '{inputs.profile.name}', is not exported ({why})",
        where=f"--on {settings.on}",
        fix=f"add it to --target, or leave --on out and measure afterwards: edgekd profile RUN --on {settings.on}",
    )


def _primary(plan: Plan, profile: HardwareProfile) -> TargetPlan | None:
    return next((t for t in plan.exports if t.target == profile.primary.target), None)


def disagreements(profile: HardwareProfile, session: DeviceSession, state: HostState | None = None) -> tuple[str, ...]:
    """What of the device is not as the profile says it, as sentences; it is measured all the same."""
    state = state or session.identity()
    flags = session.cpu_flags() if profile.cpu_flags else frozenset[str]()
    mistakes = mismatches(profile, state, flags)
    return tuple(f"{session.name} does not look like {profile.name}: {mistake}" for mistake in mistakes)
