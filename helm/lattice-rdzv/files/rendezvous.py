"""One node of `helm test`: it meets the other one, and each reads what the other wrote."""

import os

import lattice_rdzv

with lattice_rdzv.join(os.environ["TEST_RUN_ID"], nnodes=2, join_timeout=120, lease_ttl=10) as run:
    world = run.next_world(timeout_seconds=120)
    world.store.set(f"node-{world.rank}", b"here")
    world.store.multi_wait([f"node-{rank}" for rank in range(world.size)], timeout_seconds=60)
    print(f"rank {world.rank} of {world.size}, master {world.master_address}:{world.master_port}")
    run.close("succeeded")
