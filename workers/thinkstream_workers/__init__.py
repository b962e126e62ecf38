"""One replica's engine: batching, KV blocks, publishing; the Ray actor is its shell."""
