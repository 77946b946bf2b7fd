"""`python -m mechanicd.cli`."""

from mechanicd.cli import main

main(prog_name="mechanicd")
