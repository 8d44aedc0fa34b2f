"""A fleet of real agent processes that do real work on this machine, for `collectord demo`.

| file | what it holds |
|---|---|
| `show.py` | the daemon and the fleet in one command: starts both, tells what to try, stops both |
| `processes.py` | the agents' processes: starting, restarting after a pause, leaving none behind |
| `roles.py` | who is in the fleet, and what kind of trouble each one has |
| `agent.py` | one agent's process: its queue, its tasks, its trouble; linked with `agent_stub` as a user's would be |
| `work.py` | the work itself: parsing, hashing, searching, compressing; its errors are real |
| `standin.py` | where a model would be called: a small text generator that says that it is a stand-in |
"""
