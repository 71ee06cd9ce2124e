"""``triptych bench``: load on any server that speaks OpenAI's videos API, and what its clients saw."""
