"""From a video and a sentence to moments in seconds."""
