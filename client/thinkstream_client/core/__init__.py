"""What a client does, written once: operations that yield commands, and open no socket."""
