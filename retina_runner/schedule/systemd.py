"""A schedule as systemd units: a oneshot service that may do what runs need and no more, and the timer that starts it."""

from __future__ import annotations

from retina_runner.schedule import MARK, Schedule

CAPABILITIES = (
    "CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE", "CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_SYSLOG",
)  # fmt: skip
"""Capture, rules, BPF, namespaces, everybody's sockets; tcpdump's change of user; the kernel's log. Not: modules, clock, mounts' owner."""
CACHE = ("CacheDirectory=retina-run", "CacheDirectoryMode=0700", "Environment=XDG_CACHE_HOME=/var/cache")
"""Compiled BPF programs and built agents, for all schedules of the machine: root's own ~/.cache is read-only to them."""


def service(schedule: Schedule) -> str:
    """<unit>.service. A stop lets the runner end its windows and fetch; what is left after that is killed."""
    command = " ".join(quoted(word) for word in schedule.command(jitter=False))
    return "\n".join(
        (
            f"# {MARK} for {schedule.name}",
            "[Unit]",
            f"Description=retina-run {_plain(schedule.name)}"
            + (f": {_plain(schedule.summary)}" if schedule.summary else ""),
            "Wants=network-online.target",
            "After=network-online.target",
            "",
            "[Service]",
            "Type=oneshot",
            *((f"EnvironmentFile=-{_specifiers(schedule.environment)}",) if schedule.environment else ()),
            # Before the file system is made read-only for the run: what isn't there then couldn't be written.
            *((f"ExecStartPre=-+/bin/mkdir -p -- {' '.join(map(quoted, schedule.made))}",) if schedule.made else ()),
            f"ExecStart={command}",
            f"StateDirectory={_specifiers(schedule.folder.removeprefix('/var/lib/'))}",
            "StateDirectoryMode=0700",
            f"WorkingDirectory={_specifiers(schedule.folder)}",
            *CACHE,
            "UMask=0077",
            "KillMode=mixed",
            "TimeoutStopSec=5min",
            *bounds(schedule),
            *hardening(("/var/tmp", *schedule.writable), schedule.tunables),
            "",
        )
    )


def bounds(schedule: Schedule) -> tuple[str, ...]:
    """Resource limits of the runner and of its agents on this machine together (systemd.resource-control(5))."""
    memory, tasks = f"MemoryMax={schedule.memory_bytes}", f"TasksMax={schedule.tasks}"
    return ("Nice=10", f"CPUQuota={schedule.cpu_percent}%", memory, tasks)


def hardening(writable: tuple[str, ...], tunables: bool) -> tuple[str, ...]:
    """systemd.exec(5). Two things stay readable: the module tree, which says what the kernel has built in, and its log."""
    return (
        "NoNewPrivileges=yes",
        f"CapabilityBoundingSet={' '.join(CAPABILITIES)}",
        "ProtectSystem=strict",
        *((f"ReadWritePaths={' '.join(quoted('-' + path) for path in writable)}",) if writable else ()),
        "ProtectHome=read-only",
        f"ProtectKernelTunables={'no' if tunables else 'yes'}",
        "ProtectControlGroups=yes",
        "ProtectClock=yes",
        "ProtectHostname=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "SystemCallArchitectures=native",
        "SystemCallFilter=~@clock @module @reboot @swap @obsolete @cpu-emulation",
        "KeyringMode=private",
    )


def timer(schedule: Schedule) -> str:
    """<unit>.timer. The delay spreads machines; a time that was missed while the machine was off isn't made up for."""
    return "\n".join(
        (
            f"# {MARK} for {schedule.name}; cron: {schedule.cron.text}",
            "[Unit]",
            f"Description=When to start {schedule.unit}.service",
            "",
            "[Timer]",
            *(f"OnCalendar={line}" for line in schedule.cron.on_calendar(schedule.timezone)),
            "AccuracySec=1s",
            *((f"RandomizedDelaySec={max(1, round(schedule.jitter_s))}s",) if schedule.jitter_s else ()),
            "",
            "[Install]",
            "WantedBy=timers.target",
            "",
        )
    )


def quoted(word: str) -> str:
    """One word of a command line of systemd.service(5): % and $ mean themselves."""
    word = _specifiers(word).replace("$", "$$")
    if word and all(c.isalnum() or c in "/._-+=:,@%$" for c in word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


def _plain(text: str) -> str:
    return _specifiers("".join(c if c.isprintable() else "?" for c in text))
