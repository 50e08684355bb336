"""How long a run takes, what it costs, and which of its trials a budget has room for."""
