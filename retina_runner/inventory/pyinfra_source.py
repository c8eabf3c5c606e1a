"""pyinfra's inventories: Python files and connectors (`@local`, `@docker/…`, `@terraform`, `@vagrant`), read by pyinfra itself.

pyinfra's own names of connection data (`ssh_hostname`, `ssh_user`, …) become the inventory's (`ansible_host`, …), so
that everything behind this door knows one vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from retina_runner.errors import DocumentError, Problem
from retina_runner.inventory.model import Inventory, Setting

NAMES = {
    "ssh_hostname": "ansible_host", "ssh_port": "ansible_port", "ssh_user": "ansible_user",
    "ssh_key": "ansible_ssh_private_key_file", "ssh_password": "ansible_password",
    "ssh_key_password": "ansible_ssh_private_key_passphrase", "ssh_config_file": "retina_ssh_config",
    "ssh_known_hosts_file": "retina_known_hosts", "_sudo": "ansible_become", "_sudo_user": "ansible_become_user",
    "_sudo_password": "ansible_become_password",
}  # fmt: skip


def add_file(inventory: Inventory, path: Path) -> None:
    """A Python inventory: every list of hosts in it is a group, and `group_data/<group>.py` beside it its data."""
    before = _module(path)
    groups = {
        name: value for name, value in before.items()
        if not name.startswith("_") and isinstance(value, (list, tuple)) and _is_group(value)
    }  # fmt: skip
    if not groups:
        raise DocumentError([Problem(str(path), 0, 0, "", "names no hosts", "web = ['web1.example', 'web2.example']")])
    folder = path.parent / "group_data"
    for name, value in groups.items():
        hosts, shared = value if isinstance(value, tuple) else (value, {})
        group = "all" if name in ("all", "hosts") else name
        data = {**_data(folder / f"{name}.py"), **shared}
        inventory.group(group).settings.update(_settings(data, f"{path}: {name}"))
        for entry in hosts:
            host, own = entry if isinstance(entry, tuple) else (entry, {})
            if str(host).startswith("@"):
                add_connector(inventory, str(host), "ungrouped" if group == "all" else group, own)
            else:
                inventory.add_host(
                    str(host), "ungrouped" if group == "all" else group, _settings(own, f"{path}: {name}: {host}")
                )
    inventory.group("all").settings.update(_settings(_data(folder / "all.py"), f"{folder}/all.py"))


def add_connector(
    inventory: Inventory, name: str, group: str = "ungrouped", own: Mapping[str, Any] | None = None
) -> None:
    """The hosts that a connector of pyinfra gives: one for `@local` and `@ssh/host`, several for `@terraform`."""
    kind, _, rest = name[1:].partition("/")
    if kind == "local":
        inventory.add_host(rest or "localhost", group, {"ansible_connection": Setting("local", name)})
        return
    if kind == "ssh":
        inventory.add_host(rest, group, _settings(own or {}, name))
        return
    try:
        from pyinfra.api.connectors import get_all_connectors

        known: dict[str, Any] = get_all_connectors()  # type: ignore[no-untyped-call]
        if kind not in known:
            from retina_runner.documents import nearest

            raise DocumentError(
                [Problem(name, 0, 0, "", f"pyinfra has no connector {kind}", nearest(kind, sorted(known)))]
            )
        found = list(known[kind].make_names_data(rest or None))
    except DocumentError:
        raise
    except Exception as error:  # connectors run vagrant, terraform, docker: they fail in their own ways
        raise DocumentError([Problem(name, 0, 0, "", f"pyinfra's connector {kind}: {error}")]) from error
    for host, data, groups in found:
        settings = _settings({**data, **(own or {})}, name)
        if kind not in ("terraform", "vagrant"):
            settings["ansible_connection"] = Setting(kind, name)
        inventory.add_host(str(host).removeprefix("@ssh/"), group, settings)
        for other in groups:
            inventory.add_host(str(host).removeprefix("@ssh/"), str(other))


def _is_group(value: Any) -> bool:
    hosts = value[0] if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict) else value
    return isinstance(hosts, list) and all(
        isinstance(h, str) or (isinstance(h, tuple) and len(h) == 2 and isinstance(h[0], str)) for h in hosts
    )


def _module(path: Path) -> dict[str, Any]:
    """A Python inventory is a program, as with pyinfra: it is run here, by whoever names it."""
    names: dict[str, Any] = {"__file__": str(path), "__name__": "inventory"}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    except FileNotFoundError:
        raise DocumentError([Problem(str(path), 0, 0, "", "no such file")]) from None
    except SyntaxError as error:
        raise DocumentError([Problem(str(path), error.lineno or 1, error.offset or 1, "", error.msg)]) from None
    except Exception as error:
        line = error.__traceback__.tb_next.tb_lineno if error.__traceback__ and error.__traceback__.tb_next else 1
        raise DocumentError([Problem(str(path), line, 1, "", f"{type(error).__name__}: {error}")]) from None
    return names


def _data(path: Path) -> dict[str, Any]:
    return {k: v for k, v in _module(path).items() if not k.startswith("__")} if path.is_file() else {}


def _settings(data: Mapping[str, Any] | Iterable[tuple[str, Any]], origin: str) -> dict[str, Setting]:
    return {NAMES.get(k, k): Setting(v, origin) for k, v in dict(data).items()}
