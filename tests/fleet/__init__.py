"""Real sshd's in namespaces."""
