"""Asks ansible-core's own inventory for the truth. Runs under the Python that has ansible-core; JSON in, JSON out.

Input: a list of {"sources": [...], "patterns": [...]}; output for each: variables by host, and hosts by pattern (null for
a pattern that Ansible refuses).
"""

import json
import sys

from ansible import constants
from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.vars.manager import VariableManager

MAGIC = {
    "inventory_file", "inventory_dir", "inventory_hostname", "inventory_hostname_short", "group_names", "groups", "omit",
    "playbook_dir", "ansible_playbook_python", "ansible_config_file", "ansible_facts",
}  # fmt: skip


def main() -> None:
    init_plugin_loader()
    constants.LOCALHOST = frozenset()
    answers = []
    for case in json.load(sys.stdin):
        loader = DataLoader()
        inventory = InventoryManager(loader=loader, sources=case["sources"])
        variables = VariableManager(loader=loader, inventory=inventory)
        hosts = {}
        for host in inventory.get_hosts("all"):
            found = variables.get_vars(host=host, include_hostvars=False)
            hosts[str(host.name)] = {
                str(k): v
                for k, v in found.items()
                if k not in MAGIC and not str(k).startswith(("ansible_version", "ansible_run"))
            }
        meant: dict[str, list[str] | None] = {}
        for pattern in case["patterns"]:
            try:
                meant[pattern] = [str(h.name) for h in inventory.get_hosts(pattern)]
            except Exception:
                meant[pattern] = None
        answers.append({"hosts": hosts, "patterns": meant})
    json.dump(answers, sys.stdout, default=str)


main()
