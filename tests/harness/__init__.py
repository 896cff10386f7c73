"""A real Kubernetes on one Linux machine, for the tests and for the demonstration.

Nothing here is a stand-in: the API server, etcd, the kubelet and containerd are the upstream programs, built once from
pinned sources into a cache. `ControlPlane` is an API server and etcd on loopback (seconds); `Cluster` adds virtual
nodes, each in its own set of namespaces, on which pods run. `python -m tests.harness --help` is the same from a shell.
"""
