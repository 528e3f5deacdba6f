"""An update and its way back: two versions on one broker, under load, and what became of each message."""
