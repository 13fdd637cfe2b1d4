"""The worker's side: it consumes the leader queues, and admits, passes on or skips messages."""
