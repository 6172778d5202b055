"""The commands, by what they are about. What is heavy is imported when a command runs."""
