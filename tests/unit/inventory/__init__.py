"""Inventories, host patterns and connections; against Ansible, OpenSSH and pyinfra themselves where they are the measure."""
