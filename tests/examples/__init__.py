"""The examples as people apply them: rendered by kubectl, valid for the controllers that they are for, and run."""
