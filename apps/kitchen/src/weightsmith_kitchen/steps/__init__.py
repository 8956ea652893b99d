"""Instructions: techniques and utensils, events, and the whole recipe."""
