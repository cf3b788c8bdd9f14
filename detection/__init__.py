"""Image detection on COCO-format data: the family with D = 2."""
