"""What a source of metrics promises: samples since zero, what it lost, what it cost, and what it could not do here.

A source is one or several metric plugins that live and die together: all BPF programs of a plan are one source (one
compile), each plugin that only reads /proc or sysfs is another. Whoever holds it calls `prepare`, then `zero` (more
than once, if it likes: the last one counts), then `sample` as often as it likes, `loss` and `cost` after a sample, and
`stop` in any case. One thread at a time.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Tuple, Union

Labels = Tuple[Tuple[str, str], ...]
Number = Union[int, float]

OK, SKIPPED, FAILED = "ok", "skipped", "failed"


class Sample(NamedTuple):
    """One number. `metric` is its full Prometheus name (`networkobservability_drop_count`), which bpf/<plugin>.json
    describes; a histogram's samples are `<name>_bucket` with a label `le`, `<name>_sum` and `<name>_count`.

    `labels` are in the order in which they are written; those with an empty value say "does not apply".
    """

    metric: str
    labels: Labels
    value: Number


class Capability(NamedTuple):
    """One hook of one plugin on this node, as the manifest tells it. `hint` is the command that would help, or empty."""

    plugin: str
    hook: str
    status: str
    why: str = ""
    hint: str = ""


class ProgramCost(NamedTuple):
    """What the kernel says that one program has cost since `zero` (bpf_prog_info: run_cnt, run_time_ns).

    It is measured in `measured_share` of the time only (1: all of it); the numbers are those of the whole, by proportion.
    """

    program: str
    run_count: int
    run_time_ns: int
    measured_share: float = 1.0


class Scope(NamedTuple):
    """Whose traffic is counted. `namespaces` are named network namespaces (ip-netns(8)), or `pid:<number>`.

    Without namespaces: with `whole_node` everything that a hook sees, in whatever namespace (sources that belong to
    one namespace take the agent's own); without it only the namespace that the agent itself is in.
    """

    namespaces: Tuple[str, ...] = ()
    whole_node: bool = True


class Source:
    """The hooks with nothing in them."""

    def prepare(self) -> List[Capability]:
        """Load and attach what can be; a row for every hook, whatever became of it. May be slow; raises nothing for
        what this node merely lacks. When no row is `ok` the source is of no use, and only `stop` is called again."""
        return []

    def zero(self) -> None:
        """Count from now on. Quick, and repeatable."""

    def sample(self) -> List[Sample]:
        """Every number as it stands: counters and histograms since `zero`, gauges as they are. Raises OSError."""
        return []

    def loss(self) -> Dict[str, int]:
        """What was not counted since `zero`, by kind (`map_full_flows`, `recursion_misses`, …); empty or 0 for nothing."""
        return {}

    def cost(self) -> List[ProgramCost]:
        """What each program cost since `zero`; empty where the kernel doesn't say."""
        return []

    def stop(self) -> None:
        """Detach, unload, close. Idempotent, raises nothing."""
