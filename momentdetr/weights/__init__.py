"""Named models: where their weights come from, and how they get here."""
