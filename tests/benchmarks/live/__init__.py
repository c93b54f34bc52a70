"""`make bench-live`: Nightjar's bars on a live system, Ray Serve and two real replicas, as clients get their tokens over HTTP.

`python -m tests.benchmarks.live --help` says what it does. Data flow: `__main__` starts the system (`system`), hands it to the
sections, and writes what they found (`tests.benchmarks.measuring`).

    applications    the Serve applications: our replicas, the stock rivals, the policy's API
    system          those applications running, and what an operator does to them: modes, new engines, a policy that forgets
    arms            what is compared, by name
    answers         what a client got and when: tokens in a window, drafts accepted by position
    chat_client     one streamed request
    crowd           closed-loop users of several replicas
    playing         a load on the system, and what it gave: the measurements of every section
    effort          how much is measured
    sections        what is measured, a module each
"""
