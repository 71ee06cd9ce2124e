"""The schema's history: alembic's environment and its revisions."""
