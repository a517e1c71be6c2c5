"""The examples as users apply them: rendered by kubectl, validated for their controllers, and run."""
