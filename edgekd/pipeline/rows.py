"""From stage results to the report's rows: renaming and choosing, no computing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekd.artifact import Artifact, Precision
from edgekd.device_benchmarks.host import cpu_flags
from edgekd.errors import CheckError
from edgekd.export.check import CheckReport, applied_bars
from edgekd.recipes import load_recipe, recipe_names
from edgekd.report import document as d
from edgekd.report import rows as r
from edgekd.report import transfer as t

Plain = Mapping[str, Any]
# Samples kept in the report for the distribution chart; all of them stay in measure.json.
CHART_SAMPLES = 240
_VERDICTS: dict[str, r.Verdict] = {"valid": "valid", "noisy": "noisy", "throttled": "throttled", "fallback": "fallback"}


def profile_facts(profile: Plain, plan: Plain) -> d.ProfileFacts:
    """The device, with the budgets as overridden."""
    runtime, budgets = profile["runtimes"][0], plan["budgets"]
    return d.ProfileFacts(
        name=profile["name"],
        title=profile["title"],
        unit=runtime["unit"],
        runtime=runtime["target"],
        runtime_version=runtime["version"],
        precision=plan["precision"],
        precision_why=profile["quantisation"]["why"],
        ram_mib=profile["ram_mib"],
        budgets=d.Budgets.model_validate({key: budgets[key] for key in d.Budgets.model_fields}),
    )


def teacher_facts(teacher: Plain) -> d.TeacherFacts:
    """Who taught."""
    keys = ("name", "fingerprint", "parameters", "macs", "black_box")
    return d.TeacherFacts.model_validate({key: teacher[key] for key in keys})


def student_facts(select: Plain, outputs: Mapping[str, str]) -> d.StudentFacts:
    """Who learned."""
    spec, figures = select["spec"], select["figures"]
    return d.StudentFacts(
        space=spec["space"],
        summary=select["summary"],
        spec=spec,
        macs=figures["macs"],
        parameters=figures["parameters"],
        weights_sha256=outputs["student.safetensors"],
    )


def training(result: Plain) -> d.Training:
    """One training's history."""
    epochs = [d.Epoch.model_validate({key: row.get(key) for key in d.Epoch.model_fields}) for row in result["epochs"]]
    return d.Training(name=result["name"], epochs=tuple(epochs), seconds=result["seconds"], steps=result["steps"])


def accuracies(distil: Plain, quantise: Plain, check: Plain) -> Iterator[d.Accuracy]:
    """Test accuracies: models in PyTorch first, then every artifact in its runtime."""
    titles: dict[str, tuple[str, d.AccuracyRole]] = {
        "teacher": ("teacher", "teacher"),
        "student": ("student, float", "student"),
        "baseline": ("same student without teacher", "baseline"),
        "quantised": ("student, int8 after QAT", "quantised"),
        "ptq": ("student, int8 by PTQ", "artifact"),
    }
    for who, row in {**distil["accuracy"], **quantise["accuracy"]}.items():
        name, role = titles[who]
        precision: Precision = "int8" if who in ("quantised", "ptq") else "fp32"
        lo, hi = row["interval95"]
        yield d.Accuracy(
            name=name, role=role, top1=row["top1"], lo=lo, hi=hi, n=row["n"], runtime="PyTorch", precision=precision
        )
    for key, report in check["reports"].items():
        if report["accuracy_top1"] is not None:
            lo, hi = report["accuracy_ci95"]
            yield d.Accuracy(
                name=key,
                role="artifact",
                top1=report["accuracy_top1"],
                lo=lo,
                hi=hi,
                n=report["n_accuracy_images"],
                runtime=executed_in(report),
                precision=report["precision"],
                artifact=key,
            )


def executed_in(report: Plain) -> str:
    """Where an artifact's outputs came from, as a report says it."""
    names = {
        "tflite": "LiteRT",
        "onnxruntime": "ONNX Runtime",
        "openvino": "OpenVINO",
        "coreml": "Core ML",
        "tensorrt": "TensorRT",
        "null": "PyTorch",
    }
    runtime: str = names.get(report["target"], str(report["target"]))
    return {
        "runtime": runtime,
        "interpreted": f"{runtime} program, interpreted by PyTorch",
        "stand-in": "ONNX Runtime, standing in for TensorRT",
    }.get(report["executed"], "not executed")


def artifacts(export: Plain, check: Plain, profile: Plain) -> Iterator[r.ArtifactRow]:
    """Every planned target in its state."""
    primary = profile["runtimes"][0]["target"]
    for row in export["artifacts"]:
        found = check["reports"].get(f"{row['target']}-{row['precision']}") if row["artifact"] else None
        if row["artifact"] is None:
            yield r.ArtifactRow(
                target=row["target"],
                precision=row["precision"],
                state="not-exported",
                reason=row["reason"],
                primary=row["target"] == primary,
            )
            continue
        artifact = Artifact.model_validate(row["artifact"])
        passed = found is not None and found["passed"]
        yield r.ArtifactRow(
            target=artifact.target,
            precision=artifact.precision,
            state="exported-and-checked" if passed else "exported-check-failed",
            path=artifact.path.as_posix(),
            size_bytes=artifact.size_bytes,
            sha256=artifact.sha256,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            check=check_figures(found) if found else None,
            reason="; ".join(found["failures"]) if found else "not checked",
            primary=artifact.target == primary,
            notes=artifact.notes,
        )


def check_figures(report: Plain) -> r.CheckFigures:
    """What a check found, with the bars it was held against."""
    evidence = report["evidence"] or {}
    bars = applied_bars(CheckReport.model_validate(report))
    return r.CheckFigures(
        n_images=report["n_images"],
        snr_db=report["snr_db"],
        max_abs_error=report["max_abs_error"],
        agreement=report["top1_agreement"],
        top1=report["accuracy_top1"],
        compute_ops=evidence.get("compute_ops"),
        int8_ops=evidence.get("int8_compute_ops"),
        convs=evidence.get("convs"),
        int8_convs=evidence.get("int8_convs"),
        executed=report["executed"] == "runtime",
        executed_in=executed_in(report),
        min_snr_db=bars.snr_db,
        min_agreement=bars.top1_agreement,
        evidence=evidence.get("source", ""),
        failures=tuple(report["failures"]),
    )


def measurements(measure: Plain, export: Plain, *, on_device: bool, place: str = "") -> Iterator[r.MeasurementRow]:
    """Every contender of the interleaved session. place: the attached device that it was on, "" for this host.

    Raises: CheckError: it was timed in an emulator.
    """
    for row in measure["set"]["measurements"]:
        if row["kind"] != "measured":
            raise CheckError(f"{row['kind']} times are no latency", where=row["name"], fix="measure on the device")
        name, origin = row["name"], row["provenance"]
        samples = [ns / 1e6 for block in row["blocks"] for ns in block["wall_ns"]]
        step = max(1, len(samples) // CHART_SAMPLES)
        yield r.MeasurementRow(
            name=f"{name} on {place}" if place else name,
            role="teacher" if name.startswith("teacher") else "student",
            runtime=origin["runtime"],
            precision=precision_of(name),
            artifact=artifact_name(name, export),
            device=_device_of(origin["host_end"], place),
            on_profile_device=on_device and origin["runtime"] != "replay",
            threads=origin["threads"],
            p50_ms=row["p50_ms"],
            p90_ms=row["p90_ms"],
            p50_lo_ms=row["ci_lo_ms"],
            p50_hi_ms=row["ci_hi_ms"],
            n=row["n"],
            processes=len(row["processes"]),
            cv=row["cv"],
            cpu_p50_ms=row["cpu_p50_ms"],
            peak_memory_mib=row["peak_rss_mib"],
            load_ms=row["load_ms"],
            # The report knows fewer verdicts than the session: what disturbs a measurement is "noisy" there.
            verdict=_VERDICTS.get(row["verdict"], "noisy"),
            reasons=tuple(row["warnings"]),
            samples_ms=tuple(round(s, 5) for s in samples[::step]),
        )


def _device_of(state: Plain, place: str) -> str:
    what: str = state["cpu_model"]
    return f"{place} ({state['device_model'] or what})" if place else what


def precision_of(name: str) -> Precision:
    """The precision that a contender's name ends in.

    >>> precision_of("student, tflite int8"), precision_of("teacher, PyTorch eager fp32")
    ('int8', 'fp32')
    """
    last = name.rsplit(" ", 1)[-1]
    return "int8" if last == "int8" else "fp16" if last == "fp16" else "fp32"


def artifact_name(name: str, export: Plain) -> str:
    """`TARGET-PRECISION` of a deployed artifact, else "": comparison files are not in the bundle."""
    if not name.startswith("student, "):
        return ""
    label = name.removeprefix("student, ").replace(" ", "-")
    exported = (f"{row['target']}-{row['precision']}" for row in export["artifacts"] if row["artifact"])
    return label if label in exported else ""


def ratios(measure: Plain, export: Plain) -> Iterator[r.RatioRow]:
    """One row per labelled ratio on this host; of a teacher's exports the fastest counts."""
    keys: tuple[r.RatioKey, ...] = ("teacher-today-to-student", "teacher-best-to-student", "student-float-to-int8")
    for key in keys:
        found = ratio_of(key, measure, export, device="this host")
        yield found or r.RatioRow(key=key, reason=why_no_ratio(key, measure, export))


def ratio_of(key: r.RatioKey, measure: Plain, export: Plain, **where: Any) -> r.RatioRow | None:
    """A labelled ratio of a session, or None where it has none. where: the row's device."""
    found = {(row["baseline"], row["contender"]): row for row in measure["set"]["ratios"]}
    p50 = {row["name"]: row["p50_ms"] for row in measure["set"]["measurements"]}
    pairs = [tuple(pair) for k, pair in measure["pairs"] if k == key and tuple(pair) in found]
    if not pairs:
        return None
    baseline, contender = min(pairs, key=lambda pair: p50[pair[0]])
    ratio = found[baseline, contender]
    # On a contended host the longer run is pre-empted more often, so wall time flatters the student.
    clock = "cpu_" if ratio["clocks_disagree"] else ""
    contended = ", CPU time: the " + ("device" if where.get("on_profile_device") else "host") + " was contended"
    return r.RatioRow(
        key=key,
        ratio=ratio[f"{clock}ratio"],
        lo=ratio[f"{clock}lo"],
        hi=ratio[f"{clock}hi"],
        n_blocks=ratio["n_blocks"],
        significant=ratio[f"{clock}significant"],
        runtime=f"{baseline} → {contender}" + (contended if clock else ""),
        artifact=artifact_name(contender, export),
        **where,
    )


def why_no_ratio(key: str, measure: Plain, export: Plain) -> str:
    """The reason for a missing ratio."""
    if measure["student"] is None:
        return "no exported student runs on this host"
    if key == "student-float-to-int8":
        return "the deployed file in this runtime is fp32 already, or its fp32 file was not exported"
    return export["teacher_note"] or "; ".join(measure["set"]["failures"].values()) or "not measured"


def assessment(distil: Plain, quantise: Plain, classes: Sequence[str]) -> t.Assessment:
    """Leakage, corruptions, and the classes and calibration of what ships."""
    found, accuracy = distil["assessment"], {**distil["accuracy"], **quantise["accuracy"]}
    ships, teacher, baseline = (
        accuracy.get("quantised", accuracy["student"]),
        accuracy["teacher"],
        accuracy.get("baseline"),
    )
    corrupted = found["corrupted"]
    return t.Assessment(
        n_test=found["n_test"],
        duplicates=found["duplicates"],
        corruptions=tuple(t.CorruptionRow.model_validate(row) for row in corrupted["rows"]),
        n_corrupted=corrupted["n"],
        student_clean=corrupted["clean"]["student"],
        teacher_clean=corrupted["clean"]["teacher"],
        classes=tuple(
            t.ClassRow(
                name=name,
                n=n,
                teacher=teacher["per_class"][k],
                student=ships["per_class"][k],
                baseline=baseline["per_class"][k] if baseline else None,
            )
            for k, (name, n) in enumerate(zip(classes, found["class_counts"], strict=True))
            if n
        ),
        attacked=None if (attack := found.get("attacked")) is None else t.Attacked.model_validate(attack),
        ece_student=ships["ece"],
        ece_teacher=teacher["ece"],
        **found["errors"],
    )


def teaching(select: Plain, export: Plain, recipe: Plain | None) -> t.Teaching:
    """What taught and what was advised, and the teacher's file beside which the student's stands."""
    advice = select["advice"]
    reasons = {reason["question"]: reason["why"] for reason in advice["reasons"]}
    sizes = [
        row["artifact"]["size_bytes"] for row in export["comparisons"] if row["who"] == "teacher" and row["artifact"]
    ]
    advised = advice["recipe"] or ""
    return t.Teaching(
        taught=advised if recipe is None else recipe_name(recipe) or recipe["title"],
        advised=advised,
        asked=recipe is not None,
        why=f"the advisor: {reasons['recipe']}",
        teacher_bytes=min(sizes, default=None),
    )


def recipe_name(recipe: Plain) -> str:
    """The shipped recipe of this title, or ""."""
    return next((name for name in recipe_names() if load_recipe(name).title == recipe["title"]), "")


def stages(entries: Mapping[str, Plain]) -> Iterator[d.StageRow]:
    """How long each stage took."""
    for name, entry in entries.items():
        if name != "bundle":
            yield d.StageRow(name=name, state="done", seconds=entry["seconds"])


def host(measure: Plain) -> dict[str, str]:
    """The host's state at the end of the session, as text."""
    rows = measure["set"]["measurements"]
    return (
        {key: str(value) for key, value in rows[0]["provenance"]["host_end"].items() if value not in (None, [], {})}
        if rows
        else {}
    )


def warnings(data: Plain, measure: Plain) -> Iterator[str]:
    """What a reader must know before believing a number."""
    if data["note"]:
        yield data["note"]
    for name, reason in measure["set"]["failures"].items():
        yield f"not measured: {name}: {reason}"


def is_profile_device(profile: Plain) -> bool:
    """Whether this host is the device of the profile: a local profile whose CPU features are exactly this host's.

    A machine with more features (VNNI, say) is another device: its figures would flatter the profile.
    """
    if profile["transport"] != "local" or not profile["cpu_flags"]:
        return False
    flags = cpu_flags()
    return all(flag in flags for flag in profile["cpu_flags"]) and not any(
        flag in flags for flag in profile["cpu_flags_absent"]
    )
