"""Progress bars and what they show."""
