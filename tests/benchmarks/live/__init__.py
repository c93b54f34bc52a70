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
    cold            section: two replicas learn together, one learns alone
    learning_loss   what those lose until they know
    steady          section: every K and the planner at three loads
    stock_table     vLLM's own table of K by batch size, tuned on that section
    changing        section: a load that crosses the crossover, with the tuned table among the rivals
    categories      section: what is accepted of prompts of each category
"""
