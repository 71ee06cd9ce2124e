"""The data plane: tensors in slots, slots in pools, engines that read a peer's slot into one's own."""
