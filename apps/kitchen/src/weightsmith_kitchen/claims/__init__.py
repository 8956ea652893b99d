"""The papers' claims: the method against its baselines, on the user's data or on what ships."""
