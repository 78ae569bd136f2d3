"""A reflection model behind an OpenAI-compatible endpoint: calls, what they cost, their record."""
