"""The exporter and what is published, read by real Prometheus programs."""
