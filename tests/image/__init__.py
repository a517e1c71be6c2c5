"""The agents' image, built and looked into."""
