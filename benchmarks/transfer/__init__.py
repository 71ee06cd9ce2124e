"""One hop of the data plane, from one process's tensor to another's, and what to compare it with."""
