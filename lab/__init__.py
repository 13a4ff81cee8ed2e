"""What decodes, grades, times and draws; checkpoint files; helpers of the command line."""
