"""From a video file and a sentence to feature vectors."""
