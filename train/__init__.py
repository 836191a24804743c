"""Stage 2: token shards to checkpoints. Its library modules import prepare/ and train/ only."""
