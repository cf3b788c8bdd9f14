"""Feature folders in the published layouts, made from raw video and annotated queries."""
