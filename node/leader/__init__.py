"""What the leader alone does: it keeps the leases, evicts whom nobody renews, and shares out health checks."""
