"""Says why: ranks the signals that moved with the symptom, and names the mechanism."""
