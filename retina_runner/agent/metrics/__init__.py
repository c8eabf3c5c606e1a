"""Metrics: typed samples from sources (BPF programs, /proc, sysfs), and the texts that they are written as.

`model` is what a source promises; `plugins` is what its description says (bpf/<plugin>.json); `text` and `series` write.
"""
