"""BPF programs of metric plugins: compiled by BCC in a child process, loaded and read here by bpf(2) alone.

`worker` (the child) knows BCC and this kernel's BTF; `syscalls` knows bpf(2); `program` puts a compiled unit into the
kernel and keeps it there for as long as this process lives; `decode` knows what each plugin's maps mean; `source` is
the whole as a source of metrics.
"""
