"""The HTTP API: OpenAI's videos endpoints, models, health and metrics, over any ``VideoService``."""
