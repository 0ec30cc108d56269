"""Work that no caller waits for: the queue of jobs (`spawn`) and the reply analyser."""
