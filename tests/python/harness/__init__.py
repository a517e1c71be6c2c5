"""Helpers of the tests: waiting, a real etcd, nodes in processes, real torchrun agents."""
