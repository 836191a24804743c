"""Stage 1: text to token shards. Its modules import prepare/ only."""
