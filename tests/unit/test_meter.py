"""What programs cost: all of it while all is measured, in proportion afterwards; never what others had measured between."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from retina_runner.agent.ebpf import meter

KEY = (0, "on_packet")


class Kernel:
    """Stands for bpf(2)'s account: it counts while somebody keeps it open."""

    def __init__(self) -> None:
        self.runs, self.refuses, self.held = 0, False, -1

    def enable(self) -> int:
        if self.refuses:
            raise OSError(22, "Invalid argument")
        self.held = os.open("/dev/null", os.O_RDONLY)
        return self.held

    def read(self) -> meter.Times:
        return {KEY: (self.runs, 50 * self.runs)}


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def metered(kernel: Kernel) -> Iterator[meter.Meter]:
    found = meter.Meter(kernel.read, kernel.enable)
    found.start()
    yield found
    found.stop()
    found.stop()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(kernel.held)


def test_the_first_seconds_are_measured_wholly_and_count_from_zero(kernel: Kernel, metered: meter.Meter) -> None:
    kernel.runs = 700
    metered.zero()
    kernel.runs += 1000
    assert metered.so_far() == ({KEY: (1000, 50000)}, 1.0)
    kernel.runs += 1
    assert metered.so_far() == ({KEY: (1001, 50050)}, 1.0)


def test_a_slice_stands_for_its_period_and_what_others_measure_between_does_not_count(
    kernel: Kernel, metered: meter.Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=lambda: now))  # however long this test is interrupted
    metered.zero()
    kernel.runs += 1000
    with metered._lock:
        metered._shut()
        kernel.runs += 5000  # somebody else keeps the account
        metered._since -= 90  # that long ago it was shut
        metered._resume()
        kernel.runs += 7
    assert metered.so_far()[0] == {KEY: (1000, 50000)}, "a slice that isn't over"
    with metered._lock:
        metered._since -= 10  # that long the slice was
        metered._shut()
    found, share = metered.so_far()
    runs, ns = found[KEY]
    assert (runs, ns) == (1070, 53500)
    assert share == pytest.approx(0.1)


def test_a_thread_measures_slices_after_the_first_seconds(
    kernel: Kernel, metered: meter.Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "PERIOD_S", 0.02)
    monkeypatch.setattr(meter, "SLICE_S", 0.01)
    monkeypatch.setattr(meter, "FULL_S", 0.0)
    metered.stop()
    again = meter.Meter(kernel.read, kernel.enable)
    again.start()
    while again.so_far()[1] == 1:  # until a first slice is over
        time.sleep(0.001)
    again.stop()


def test_a_kernel_without_such_an_account(kernel: Kernel) -> None:
    kernel.refuses = True
    found = meter.Meter(kernel.read, kernel.enable)
    found.start()
    found.zero()
    kernel.runs = 7
    assert found.so_far() == ({}, 1.0)
    found.stop()
