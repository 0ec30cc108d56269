"""How the gateway runs as processes: listening, one worker, several under a supervisor."""
