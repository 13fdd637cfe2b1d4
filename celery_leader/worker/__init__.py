"""The worker's side: it consumes the leader queues, and decides about each message."""
