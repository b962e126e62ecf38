"""The Thinker: tensors in, logits out. Knows no Redis, no Ray and no client."""
