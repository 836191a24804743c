"""Token shards to checkpoints: the second room. Library modules import prepare/ only."""
