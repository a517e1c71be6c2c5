"""What the suites share: waiting, a real etcd, nodes in processes, real torchrun agents."""
