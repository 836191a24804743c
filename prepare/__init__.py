"""Text to token shards: the first stage. Imports nothing of train/ or eval/."""
