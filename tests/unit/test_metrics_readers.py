"""Readers of /proc and sysfs keep the promises of a source: relative to zero, never falling, resets told. Texts as kernels
write them; the InfiniBand tree is a fake one, as there is no such hardware here."""

from __future__ import annotations

from pathlib import Path

from retina_runner import schema
from retina_runner.agent.metrics import conntrack, cpus, softirq
from retina_runner.agent.metrics.infiniband import Infiniband
from retina_runner.agent.metrics.model import Capability, Sample, Scope
from retina_runner.agent.metrics.reader import COUNTER, GAUGE, Reader, Reading, Way

OPTIONS = schema.normalise({}, schema.load("collectors/ebpf"))


class Dial(Reader):
    """A reader whose numbers a test sets."""

    PLUGIN = "dial"

    def __init__(self) -> None:
        super().__init__(Scope(), OPTIONS)
        self.now: list[Reading] = []
        self.missing = False

    def ways(self) -> list[Way]:
        return [Way("first"), Way("second", needed=False, hint="buy one")]

    def take(self, hook: str) -> list[Reading]:
        if hook == "second" or self.missing:
            raise FileNotFoundError(2, "No such file or directory")
        return self.now


def reading(value: int, name: str = "x", kind: str = COUNTER) -> Reading:
    return Reading(name, (), value, kind)


def values(dial: Dial) -> dict[str, float]:
    return {s.metric: s.value for s in dial.sample()}


def test_counters_are_relative_to_zero_and_gauges_are_not() -> None:
    dial = Dial()
    dial.now = [reading(100), reading(7, "g", GAUGE)]
    assert dial.prepare() == [
        Capability("dial", "first", "ok"),
        Capability("dial", "second", "skipped", "No such file or directory", "buy one"),
    ]
    dial.zero()
    assert values(dial) == {"x": 0, "g": 7}
    dial.now = [reading(105), reading(3, "g", GAUGE)]
    assert values(dial) == {"x": 5, "g": 3}
    dial.zero()
    assert values(dial) == {"x": 0, "g": 3}
    assert dial.loss() == {"counters_reset": 0}


def test_what_vanishes_keeps_its_value_what_appears_counts_from_nothing_what_was_reset_is_told() -> None:
    dial = Dial()
    dial.now = [reading(100, "old")]
    dial.prepare()
    dial.zero()
    dial.now = [reading(130, "old"), reading(4, "new")]
    assert values(dial) == {"old": 30, "new": 4}
    dial.now = [reading(6, "new")]
    assert values(dial) == {"old": 30, "new": 6}
    assert dial.loss()["counters_reset"] == 0
    dial.now = [reading(2, "old"), reading(6, "new")]
    assert values(dial) == {"old": 32, "new": 6}
    dial.now = [reading(5, "old"), reading(6, "new")]
    assert values(dial) == {"old": 35, "new": 6}
    assert dial.loss()["counters_reset"] == 1


def test_a_counter_of_32_bits_that_wraps_is_no_reset() -> None:
    dial = Dial()
    dial.now = [reading(2**32 - 10)]
    dial.prepare()
    dial.zero()
    dial.now = [reading(15)]
    assert values(dial) == {"x": 25}
    assert dial.loss()["counters_reset"] == 0


def test_without_what_it_needs_a_reader_says_that_it_is_of_no_use() -> None:
    dial = Dial()
    dial.missing = True
    assert [row.status for row in dial.prepare()] == ["skipped", "skipped"]
    other = Reader.prepare(_Nowhere())
    assert [(row.status, row.hint) for row in other] == [("failed", "ip netns list")]


class _Nowhere(Dial):
    def __init__(self) -> None:
        super().__init__()
        self._names = ("no-such-namespace",)


def test_infiniband_in_a_fake_sysfs_tree(tmp_path: Path) -> None:
    files = {
        "class/infiniband/mlx5_0/ports/1/counters/port_xmit_data": "100\n",
        "class/infiniband/mlx5_0/ports/1/counters/port_rcv_errors": "N/A (no PMA)\n",
        "class/infiniband/mlx5_0/ports/1/hw_counters/out_of_sequence": "7\n",
        "class/infiniband/mlx5_0/ports/1/hw_counters/lifespan": "10\n",
        "class/infiniband/mlx5_1/ports/2/counters/port_xmit_data": "5\n",
        "class/net/ib0/debug/lro_timer": "32\n",
        "class/net/eth0/debug/lro_timer": "1\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    source = Infiniband(Scope(), OPTIONS, sysfs=str(tmp_path))
    assert [row.status for row in source.prepare()] == ["ok", "ok"]
    source.zero()
    (tmp_path / "class/infiniband/mlx5_0/ports/1/counters/port_xmit_data").write_text("142\n")
    counter, parameter = (
        "networkobservability_infiniband_counter_stats",
        "networkobservability_infiniband_status_params",
    )
    assert sorted(source.sample(), key=repr) == sorted(
        [
            Sample(counter, (("statistic_name", "port_xmit_data"), ("device", "mlx5_0"), ("port", "1")), 42),
            Sample(counter, (("statistic_name", "out_of_sequence"), ("device", "mlx5_0"), ("port", "1")), 0),
            Sample(counter, (("statistic_name", "port_xmit_data"), ("device", "mlx5_1"), ("port", "2")), 0),
            Sample(parameter, (("statistic_name", "lro_timer"), ("interface_name", "ib0")), 32),
        ],
        key=repr,
    )
    assert Infiniband(Scope(), OPTIONS, sysfs=str(tmp_path / "none")).prepare()[0].status == "skipped"


def test_the_texts_of_softirq() -> None:
    runs = softirq._runs(
        "                    CPU0       CPU1\n      NET_TX:          1          2\n      NET_RX:         30         40\n"
    )
    assert {(dict(r.labels)["vector"], dict(r.labels)["cpu"]): r.value for r in runs} == {
        ("NET_TX", "0"): 1, ("NET_TX", "1"): 2, ("NET_RX", "0"): 30, ("NET_RX", "1"): 40,
    }  # fmt: skip
    seconds = softirq._seconds(
        "cpu  1 2 3 4 5 6 300 8 9 0\ncpu0 1 2 3 4 5 6 100 8 9 0\ncpu1 1 2 3 4 5 6 200 8 9 0\nintr 5\n", 100
    )
    assert [(dict(r.labels)["cpu"], r.value) for r in seconds] == [("0", 1.0), ("1", 2.0)]


def test_a_connection_is_the_same_one_whatever_its_state_and_mark() -> None:
    line = (
        "ipv4     2 tcp      6 {} {} src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 packets={} bytes={} {}"
        "src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 packets=3 bytes=180 {}mark={} zone=0 use=2\n"
    )
    early = conntrack.parse_table(line.format(100, "SYN_SENT", 4, 240, "[UNREPLIED] ", "", 0))
    late = conntrack.parse_table(line.format(431999, "ESTABLISHED", 5, 300, "", "[ASSURED] ", 9))
    assert list(early) == list(late)
    assert list(late.values()) == [(5, 300, 3, 180)]
    zoned = conntrack.parse_table(line.replace("zone=0", "zone=7").format(1, "CLOSE", 5, 300, "", "", 0))
    assert list(zoned) != list(late)
    assert conntrack.parse_table("ipv4 2 udp 17 29 src=1.1.1.1 dst=2.2.2.2 sport=1 dport=2 mark=0 use=1\n") == {}


def test_cpus_that_go_and_come_in_a_simulated_mask(tmp_path: Path) -> None:
    """The mask is a file of the test's own: CPUs of machines in clouds often can't be taken off-line."""
    mask = tmp_path / "online"
    mask.write_text("0-3,8\n")
    watched = cpus.Cpus(str(mask))
    assert watched.look() == 0
    mask.write_text("0-2,4,8\n")  # as many as before
    assert watched.look() == 2
    mask.write_text("0-3,8\n")
    assert watched.look() == 4
    assert watched.look() == 4
    watched.zero()
    assert watched.look() == 0
    assert cpus.Cpus(str(tmp_path / "none")).look() == 0
    assert cpus.parse("0,2-4,31\n") == {0, 2, 3, 4, 31}
