"""The orchestrator: takes requests over HTTP and routes each through the roles; tensors never pass it."""
