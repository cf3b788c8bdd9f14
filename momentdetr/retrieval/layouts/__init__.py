"""What the official codes of further systems call their parts, one file each."""
