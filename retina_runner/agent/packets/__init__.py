"""Packets by tcpdump: one process an interface (`command`, `tap`), its file read while it grows (`stream`) or kept as a ring.

What was measured with tcpdump 4.99 and is kept to here:

* A stopped tcpdump forgets the kernel ring's unfinished block, up to a second of packets, without counting them. So it
  runs past the window's end by `OVERRUN_S`, and the pcap is cut by time stamp.
* `--immediate-mode` with a large snaplen leaves the ring room for some eight packets; it is never used. `-B` is large.
* Distribution builds drop to user `tcpdump` and then can't rotate in a private directory: `-Z root`. AppArmor lets
  them write `*.pcap` and `*.pcap<digits>` only.
* Several `-i` capture on the last interface only: one process each.
* `-C` with `-W` rewrites its files in place. A ring here is `-C` alone, whose names are unique, pruned by us.
* libpcap's optimiser (1.10.3) miscompiles: of `(net fd00::/63) and (dst net fd00::/63)` it makes "from there and to
  there". The filter runs as it was generated, `-O`, unless the kernel can't take a program of that length.
* SIGUSR1 makes tcpdump print its counts while it runs. SIGUSR2 would flush its file, but from inside the signal
  handler, and into a file that `-C` may have closed: a ring that is frozen while it runs is written with `-U` instead.
"""
