"""Real shapes with random weights on a GPU: each stage, each hop, and split against fused."""
