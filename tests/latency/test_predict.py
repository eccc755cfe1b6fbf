"""What an estimate rests on is said, a damaged table is refused, and ten thousand candidates take a moment."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest

from edgekd.errors import InputError
from edgekd.latency import GraphCost, OpCost, Predictor, features
from edgekd.latency.features import FEATURES
from edgekd.latency.hierarchy import Normal, spread
from edgekd.latency.hierarchy import nominal as nominal_costs
from edgekd.latency.published import Device
from edgekd.latency.table import CalibrationTable, Costs, Interval, load_table, save_table, shipped_table
from edgekd.profile import load_profile, profile_names

NANO = load_profile("jetson-nano")


def cost(*ops: OpCost) -> GraphCost:
    return GraphCost(ops=ops, parameters=0, peak_activation_elements=0)


CONV = OpCost(
    kind="conv", name="c", op="convolution", macs=10**9, write_elements=10**6, in_channels=64, out_channels=64
)


def device(**changes: str) -> Device:
    plain = {"kind": "gpu.cuda", "name": "NVIDIA Jetson Nano", "chipset": "", "runtime": "TensorRT", "version": ""}
    return Device(**{**plain, "precision": "fp16", "threads": "", **changes})


def table(*devices: Device) -> CalibrationTable:
    prior = Normal(nominal_costs(), spread(speed=1.5, group=0.7, single=0.1))
    costs = tuple(Costs(d, 14, nominal_costs() + i) for i, d in enumerate(devices))
    return CalibrationTable(costs, {"gpu.cuda": prior}, {"gpu.cuda": Interval(0.9, 1.2, 70)}, {})


def predictor(*devices: Device, profile=NANO, **asked) -> Predictor:
    chosen = {"unit": "gpu", "runtime": "tensorrt", "precision": "fp16", **asked}
    return Predictor(profile, table=table(*devices), **chosen)


def test_rows_of_this_device_come_with_their_interval() -> None:
    found = predictor(device()).estimate(cost(CONV))
    assert found.kind == "predicted"
    assert found.provenance == "14 networks measured in TensorRT, fp16, on NVIDIA Jetson Nano"
    assert (found.lo_ms / found.p50_ms, found.hi_ms / found.p50_ms) == pytest.approx((0.9, 1.2))


def test_the_asked_runtime_goes_before_another_and_the_other_is_named_and_wider() -> None:
    other = device(runtime="PyTorch CUDA")
    both = predictor(other, device()).rest
    assert both is not None
    assert both.costs.device.runtime == "TensorRT"
    lone = predictor(other).estimate(cost(CONV))
    assert lone.provenance.endswith("PyTorch CUDA, fp16, on NVIDIA Jetson Nano (another runtime)")
    assert lone.hi_ms / lone.p50_ms == pytest.approx(2.0)


def test_relatives_are_borrowed_from_in_the_profiles_order() -> None:
    unit = NANO.unit("gpu").model_copy(update={"calibration_devices": (), "relative_devices": ("B", "A")})
    profile = NANO.model_copy(update={"units": (unit,)})
    rest = predictor(device(name="A"), device(name="B"), profile=profile).rest
    assert rest is not None
    assert rest.costs.device.name == "B"
    assert rest.provenance.endswith("(a relative of this unit)")


def test_without_rows_or_relatives_the_roofline_says_so() -> None:
    assert predictor().estimate(cost(CONV)).provenance == "roofline, uncalibrated"


def test_int8_rows_never_stand_for_float() -> None:
    assert predictor(device(precision="int8")).rest is None


def test_the_thread_count_that_is_asked_for_is_taken() -> None:
    rows = [device(kind="cpu.ncnn.float", runtime="ncnn", precision="fp32", threads=n) for n in ("1", "4")]
    for threads, expected in ((1, "1"), (4, "4"), (None, "4")):
        rest = predictor(*rows, unit="cpu", runtime="tflite", precision="fp32", threads=threads).rest
        assert rest is not None
        assert rest.costs.device.threads == expected
    with pytest.raises(InputError, match="0 threads; give a count from 1 to 1024"):
        predictor(*rows, unit="cpu", runtime="tflite", precision="fp32", threads=0)


def test_ten_networks_of_a_new_device_move_the_prediction() -> None:
    rng = np.random.default_rng(0)
    rows = np.exp(rng.normal(0, 1, (10, len(FEATURES))))
    start = predictor(device())
    thrice = [3 * ms for ms in start.milliseconds(rows)]
    moved = start.adapted(rows, thrice)
    assert moved.milliseconds(rows) == pytest.approx(thrice, rel=0.05)
    assert moved.estimate(cost(CONV)).provenance.startswith("10 networks measured on this device")


def test_many_candidates_are_one_product_and_agree_with_one_at_a_time() -> None:
    one = predictor(device())
    rows = np.abs(np.random.default_rng(0).normal(size=(10_000, len(FEATURES))))
    many = one.milliseconds(rows)
    assert many.shape == (10_000,)
    assert one.milliseconds(rows[17:18])[0] == pytest.approx(many[17])
    assert one.estimate(cost(CONV)).p50_ms == pytest.approx(one.milliseconds(features(cost(CONV))[None])[0])


def test_a_unit_or_precision_that_the_device_lacks_is_refused() -> None:
    with pytest.raises(InputError, match="no compute unit 'npu'"):
        predictor(device(), unit="npu")
    with pytest.raises(InputError, match="no int8 path"):
        predictor(device(), precision="int8")


def test_a_table_survives_writing_and_reading(tmp_path: Path) -> None:
    written = table(device(), device(threads="4"))
    read = load_table(save_table(written, tmp_path / "t.npz"))
    assert [c.device for c in read.devices] == [c.device for c in written.devices]
    assert read.devices[1].theta == pytest.approx(written.devices[1].theta, abs=1e-5)
    assert read.families == written.families


def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path) -> None:
    path = save_table(table(device()), tmp_path / "t.npz")
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2], whole[:200] + b"\0" * 50 + whole[250:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"t\.npz: not a calibration table, or a damaged one"):
            load_table(path)
    for place in range(0, len(whole), len(whole) // 150):  # a flipped bit is found, or changes nothing that is read
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        with contextlib.suppress(InputError):
            load_table(path)
    with pytest.raises(InputError, match="no such calibration table"):
        load_table(tmp_path / "none.npz")
    broken = table(device())
    broken.devices[0].theta[3] = np.nan
    with pytest.raises(InputError, match="a cost is no number"):
        load_table(save_table(broken, path))


def test_the_shipped_table_predicts_every_profile_it_has_rows_for() -> None:
    assert len(shipped_table().devices) > 300
    for name in profile_names():
        profile = load_profile(name)
        for support in profile.runtimes:
            for precision in support.precisions:
                unit = profile.unit(support.unit)
                if unit.peak_gops(precision) is None:
                    continue
                found = Predictor(profile, unit=support.unit, runtime=support.target, precision=precision)
                small, large = (found.estimate(cost(*[CONV] * n)).p50_ms for n in (1, 10))
                assert 0 < small < large < 1e6
                assert small < 60_000
