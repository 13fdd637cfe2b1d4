"""The worker's step: it consumes the leader's queue, and decides about each message."""
