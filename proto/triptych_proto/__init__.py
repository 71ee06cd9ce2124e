"""The wire contract between orchestrator and roles, generated from control.proto by ``make proto``."""
