"""Trains the demo model: a tiny Wan that draws a coloured shape moving over a ground, as a prompt says."""
