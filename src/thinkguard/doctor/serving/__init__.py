"""A live server, asked a few questions."""
