"""Text to token shards: the first room. Imports nothing of train/ or eval/."""
