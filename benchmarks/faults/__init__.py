"""A denoiser that is killed under load: what fails, what is wrong, and how long until all is as before."""
