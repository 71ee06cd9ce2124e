"""The role process: one part of a diffusion pipeline behind a control stream and a data plane."""
