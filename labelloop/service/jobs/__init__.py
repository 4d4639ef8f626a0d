"""Events and jobs: the inbox, the wake-up queue, workers, leases, and heartbeats."""
