"""Kubernetes: a Job a node, pinned to it, with the node's network; the agent's verbs are processes in its pod.

    choosing    which nodes, and the addresses of which pods
    objects     what is created: pure functions from settings to manifests
    api         the few requests that are needed, over HTTPS and WebSocket; kubeconfig says where and as whom
    session     one watch and one ConfigMap for all nodes of a run
    waiting     until a pod runs, or why it never will
    link        a node of the run, as executors.Link
    reading     afterwards: a pod that reads archives from a node's disk or a claim

The image holds tools and none of our code: the agent comes by a ConfigMap, the plan by the verb `start`. Everything that
is created carries the label `retina-run/run` and goes with its Job, which the runner deletes, or else the cluster does:
`activeDeadlineSeconds` ends it, `ttlSecondsAfterFinished` removes it, and owner references take the rest along.

Without third-party clients: those for Python need 30 to 500 MiB and seconds for what is here (measured), and none of
them comes through a restart of the API server by itself.
"""
