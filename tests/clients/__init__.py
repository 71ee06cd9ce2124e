"""The clients that must work unchanged, each as it is installed, against real processes."""
