"""One file per published video-text encoder, with its own losses."""
