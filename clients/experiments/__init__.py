"""The paper's experiments at small scale, on real data that ships inside packages, run as a fleet through the service.

From a clone, with clients/ on the path (an editable install puts it there): `python -m experiments list|data|run|merge|report`.

`_catalogue` is the declarative list of tasks, arms and experiments. `_sources`, with `texts` and `_packages`, reads packages
and writes the prepared sets that `_data` loads. `_problems` and `_models` turn them into losses and models, `_arms` creates the
optimizers, and `_train` runs one training. `_plan` lists what is left to do, `_runner` keeps a pool of processes training, and
`_results` stores the results. From the results alone, `_judge` decides who won, `_comparison` collects the rows, `_claims`
marks the paper's claims (its figures are in `_paper`), and `_report` with `_plots` writes the report.
"""
