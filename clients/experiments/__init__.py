"""The paper's experiments at small scale, on real data that ships inside packages, run as a fleet through the service.

From a clone, with clients/ on the path (an editable install puts it there): `python -m experiments list|data|run|merge|report`.

`_catalogue` is the declarative list: tasks, arms, and the experiments that they make up. `_sources`, over `texts` and
`_packages`, reads the packages and writes the prepared sets that `_data` loads. `_problems` and `_models` make them trainable,
`_arms` makes the optimizers, and `_train` is one training. `_plan` says what is left to do, `_runner` keeps a pool of
trainings at work, `_results` keeps what came of them. From the results alone, `_judge` decides who won, `_comparison` gathers
the rows, `_claims` marks what the paper says, beside `_paper`'s own figures, and `_report` with `_plots` writes the page.
"""
